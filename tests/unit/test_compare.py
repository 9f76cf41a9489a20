"""`engines --compare`: candidates, their error rates and prices, the order, and the plot."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result

from batchscribe.cli import compare as comparing
from batchscribe.cli.app import App
from batchscribe.cli.main import cli
from batchscribe.core.run.manifest import EngineSpec, EngineTimeSummary
from batchscribe.errors import MisconfiguredError, ObjectNotFoundError
from batchscribe.ledger import Speed
from batchscribe.settings import Settings
from batchscribe.wiring.engines import EngineReport

SAID = {"faster-whisper tiny.en": "we left the house early", "pocketsphinx": "we lift the mouse early"}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one recording; two engines that say SAID, without transcribing."""

    def transcribe(_settings: Settings, spec: EngineSpec, sample: comparing.Sample) -> tuple[list[str], Any]:
        assert list(sample) == ["001/talk.mp3"]
        worked = EngineTimeSummary(after_load=2.0, flags={"low-confidence": 1})
        name = f"{spec.engine} {spec.model}".strip()
        return comparing.split_words(SAID[name]), SimpleNamespace(audio_seconds=30.0, worked=worked)

    reports = (
        EngineReport(
            name="faster-whisper", problems=("small.en is missing",), models={"tiny.en": True, "small": False}
        ),
        EngineReport(name="parakeet", problems=("not installed",), models={"v2": False}),
        EngineReport(name="pocketsphinx", problems=()),
    )
    monkeypatch.setattr(comparing, "_transcribe_sample", transcribe)
    monkeypatch.setattr(
        comparing,
        "engine_reports",
        lambda _spec, engine: [report for report in reports if engine in {"auto", report.name}],
    )
    monkeypatch.chdir(tmp_path)
    (tmp_path / "talk.mp3").write_bytes(b"sound")
    (tmp_path / "spoken.txt").write_text("We left the house, early.\n")
    return tmp_path


def engines(*words: str) -> Result:
    return CliRunner().invoke(cli, ["engines", *words], catch_exceptions=False)


def compared(*words: str) -> list[dict[str, Any]]:
    done = engines("--compare", "talk.mp3", "--json", *words)
    found: list[dict[str, Any]] = json.loads(done.stdout)["compared"]
    return found


@pytest.mark.usefixtures("home")
def test_each_model_at_hand_is_compared_with_the_reference_and_the_others() -> None:
    whisper, sphinx = compared("--reference", "spoken.txt")
    assert (whisper["engine"], whisper["model"], whisper["wer"]) == ("faster-whisper", "tiny.en", 0.0)
    assert (sphinx["engine"], sphinx["wer"]) == ("pocketsphinx", 0.4)
    assert whisper["against"] == {"pocketsphinx": 0.4}
    assert (whisper["speed"], whisper["flags"]) == (15.0, {"low-confidence": 1})
    assert whisper["dollars_per_audio_hour"] is None


@pytest.mark.usefixtures("home")
def test_without_a_reference_the_one_most_like_the_others_is_first() -> None:
    assert [one["wer"] for one in compared()] == [None, None]


@pytest.mark.usefixtures("home")
def test_one_engine_can_be_chosen() -> None:
    assert [one["engine"] for one in compared("--engine", "pocketsphinx")] == ["pocketsphinx"]
    with pytest.raises(MisconfiguredError, match="no engine can run here"):
        engines("--compare", "talk.mp3", "--engine", "parakeet")


@pytest.mark.usefixtures("home")
def test_the_table_fits_80_columns() -> None:
    done = engines("--compare", "talk.mp3", "--reference", "spoken.txt")
    lines = done.stdout.splitlines()
    assert lines[0].split()[:3] == ["engine", "model", "WER"]
    assert lines[1].split()[:3] == ["faster-whisper", "tiny.en", "0.0%"]


@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_quality_is_drawn_against_price(home: Path, suffix: str) -> None:
    engines("--compare", "talk.mp3", "--reference", "spoken.txt", "--plot", f"plot{suffix}")
    drawn = (home / f"plot{suffix}").read_bytes()
    assert drawn.startswith(b"\x89PNG" if suffix == ".png" else b"<?xml")


@pytest.mark.parametrize("file", ["plot.jpeg", "plot", "nowhere/plot.svg"])
def test_a_plot_that_cannot_be_drawn_is_refused_before_the_work(
    home: Path, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparing, "_transcribe_sample", lambda *_arguments: pytest.fail("it worked already"))
    with pytest.raises(MisconfiguredError, match=f"cannot draw into {file}"):
        engines("--compare", "talk.mp3", "--plot", file)
    assert not (home / file).exists()


def test_the_price_is_of_the_cheapest_measured_type() -> None:
    spec = EngineSpec(engine="parakeet", model="v2")
    measured = [
        Speed("parakeet", "v2", "g4dn.xlarge", 50.0, 3),
        Speed("parakeet", "v2", "g6.xlarge", 230.0, 1),
        Speed("parakeet", "v2", "x9.unknown", 1000.0, 1),
        Speed("parakeet", "v2", "", 1000.0, 1),
        Speed("parakeet", "v3", "g6.xlarge", 900.0, 1),
    ]
    found = comparing._find_price(Settings(region="us-east-2"), spec, measured)
    assert found is not None
    dollars, kind = found
    assert dollars == pytest.approx(0.8048 / 230, rel=0.01)
    assert kind == "g6.xlarge"


def test_words_are_compared_without_case_and_marks_in_any_script() -> None:
    assert comparing.split_words("Don't — STOP, Žluťoučký!") == ["don't", "stop", "žluťoučký"]


def test_what_is_compared_round_trips_as_json() -> None:
    one = comparing.Compared(engine="a", model="", words=1, against={}, flags={}, speed=None)
    assert one.error == 0.0
    assert msgspec.json.decode(msgspec.json.encode(one), type=comparing.Compared) == one


def test_files_of_one_name_or_one_stem_are_all_in_the_sample(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a/talk.mp3", "b/talk.mp3", "b/talk.wav")]
    for number, file in enumerate(files):
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(bytes([number]))
    sample = comparing._collect_sample(App(), list(map(str, files)))
    assert sample == {"001/talk.mp3": b"\0", "002/talk.mp3": b"\1", "003/talk.wav": b"\2"}


@pytest.mark.parametrize("words", [("--reference", "spoken.txt"), ("--plot", "plot.svg")])
@pytest.mark.usefixtures("home")
def test_an_option_of_a_comparison_alone_is_refused(words: tuple[str, str]) -> None:
    assert "need --compare" in engines(*words).output


@pytest.mark.usefixtures("home")
def test_what_is_no_audio_file_is_refused_before_the_work() -> None:
    with pytest.raises(MisconfiguredError, match="is not the name of an audio file"):
        engines("--compare", "spoken.txt")


@pytest.mark.usefixtures("home")
def test_what_cannot_do_the_language_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCH_LANGUAGE", "de")
    with pytest.raises(MisconfiguredError, match="no engine can run here"):
        engines("--compare", "talk.mp3")


@pytest.mark.parametrize("source", ["audio", ""])
@pytest.mark.usefixtures("home")
def test_neither_a_file_nor_a_session_is_refused_before_the_work(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "audio").mkdir()
    (tmp_path / "rec").mkdir()
    if source:
        monkeypatch.setenv("BATCH_SOURCE", str(tmp_path / source))
    for name in ("rec", "absent.mp3"):
        with pytest.raises(ObjectNotFoundError, match=f"neither a file nor a session '{name}'"):
            engines("--compare", name)


@pytest.mark.usefixtures("home")
def test_an_error_rate_above_100_percent_comes_with_its_usual_cause(tmp_path: Path) -> None:
    hint = "the reference must hold the texts of all files and sessions, in the order given"
    words = ("--compare", "talk.mp3", "--reference", "spoken.txt")
    assert hint not in " ".join(engines(*words).stdout.split())
    (tmp_path / "spoken.txt").write_text("Left.\n")
    assert hint in " ".join(engines(*words).stdout.split())


def test_words_are_read_in_the_order_in_which_the_audio_was_given(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"transcription-{name}.json").write_text(json.dumps({"text": f"From {name}."}))
    assert comparing._read_words(tmp_path, ["b.mp3", "a.mp3"]) == ["from", "b", "from", "a"]
