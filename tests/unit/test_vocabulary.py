"""A vocabulary: read and bounded, given to engines that can use one, and never recited."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from msgspec import structs

from batchscribe.adapters.engines.whisper.decoder import MAX_PROMPT, WhisperDecoder
from batchscribe.adapters.engines.whisper.engine import FACTORY
from batchscribe.core.run.manifest import EngineSpec
from batchscribe.core.text.quality import Doubt, Recognized, choose_better, find_doubts
from batchscribe.core.text.transcripts import Segment
from batchscribe.core.text.vocabulary import LONGEST, MOST, is_recited, parse_vocabulary
from batchscribe.errors import MisconfiguredError
from batchscribe.settings import load
from batchscribe.wiring.engine_choice import engine_spec
from batchscribe.wiring.engines import list_limits

TERMS = ("Kubernetes", "Marie Curie", "Lovelace", "Hopper")


def test_a_file_has_a_term_a_line() -> None:
    assert parse_vocabulary("# people\nMarie  Curie\n\nHopper\nHopper\n") == ("Marie Curie", "Hopper")


@pytest.mark.parametrize("text", ["a" * 101, "a\x07b", "\n".join(map(str, range(501)))])
def test_a_vocabulary_has_bounds(text: str) -> None:
    with pytest.raises(MisconfiguredError, match="vocabulary"):
        parse_vocabulary(text)


def test_a_line_that_is_no_term_is_named() -> None:
    with pytest.raises(MisconfiguredError, match=r"line 3 of the vocabulary is not a term \('a.x07b'\)"):
        parse_vocabulary(f"# {'c' * 200}\nHopper\na\x07b")


def test_a_worker_reads_every_term_of_a_file() -> None:
    # As many and as long as there may be, with blanks, marks and letters of any script.
    odd = ("Marie Curie", '"quoted", and more;', "東京", "AT&T", "naïve/co-op", "x" * LONGEST)
    terms = parse_vocabulary("\n".join((*odd, *map(str, range(MOST - len(odd))))))
    spec = EngineSpec(engine="any", vocabulary=terms)
    assert msgspec.json.decode(msgspec.json.encode(spec), type=EngineSpec) == spec


@pytest.mark.parametrize(
    ("text", "silent", "recited"),
    [
        ("Kubernetes, Marie Curie,", False, True),
        ("Curie Lovelace Hopper.", False, True),
        ("Hopper met Marie Curie", False, False),
        ("Hopper Lovelace Kubernetes", False, False),
        ("Kubernetes.", False, False),
        ("Kubernetes.", True, True),
        ("", True, False),
    ],
)
def test_a_recited_vocabulary_is_recognized(text: str, silent: bool, recited: bool) -> None:
    assert is_recited(text, TERMS, silent=silent) is recited


def test_recited_words_give_way_to_silence() -> None:
    words = Recognized((Segment(text="Hopper", start=0, end=1),), 5.0, avg_logprob=-0.1, recited=True)
    nothing = Recognized((), 5.0, avg_logprob=-0.5)
    assert find_doubts(words) == {Doubt.RECITED}
    assert choose_better(words, nothing) is nothing


@pytest.mark.parametrize("engine", ["parakeet", "pocketsphinx"])
def test_an_engine_that_cannot_use_one_is_refused(engine: str) -> None:
    spec = EngineSpec(engine=engine)
    assert not any("BATCH_VOCABULARY" in limit for limit in list_limits(spec))
    limits = list_limits(structs.replace(spec, vocabulary=TERMS))
    assert any("BATCH_VOCABULARY" in limit for limit in limits)


def test_auto_is_an_engine_that_can_use_one(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("\n".join(TERMS))
    environ = {"BATCH_VOCABULARY": "names.txt", "GPU_INSTANCE_ID": "i-0123456789abcdef0"}
    spec = engine_spec(load(environ | {"BATCH_LANGUAGE": "en"}, folder=tmp_path))
    assert (spec.engine, spec.vocabulary) == ("faster-whisper", TERMS)


def test_a_byte_order_mark_is_no_part_of_a_term_or_rule(tmp_path: Path) -> None:
    names = {"BATCH_VOCABULARY": "names.txt", "BATCH_REPLACEMENTS": "fixes.txt"}
    (tmp_path / "names.txt").write_text(TERMS[0], encoding="utf-8-sig")
    (tmp_path / "fixes.txt").write_text("old => new", encoding="utf-8-sig")
    settings = load(names, folder=tmp_path)
    assert settings.read_vocabulary() == TERMS[:1]
    assert [rule.line for rule in settings.open_rendering().replacements] == ["old => new"]


def test_a_file_that_is_missing_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(MisconfiguredError, match=r"BATCH_VOCABULARY names .*names\.txt"):
        engine_spec(load({"BATCH_VOCABULARY": "names.txt"}, folder=tmp_path))


def test_the_prompt_has_as_many_terms_as_fit() -> None:
    spec = EngineSpec(engine="faster-whisper", model="tiny.en", device="cpu", vocabulary=("Lovelace",) * 500)
    decoder, _device, _kind = FACTORY.load_decoder(spec)
    assert 10 < len(decoder.vocabulary) < MAX_PROMPT
    assert WhisperDecoder(decoder._whisper).vocabulary == ()
