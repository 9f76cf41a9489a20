"""`engines --compare`: each engine and model, on a user's own audio."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import fmean

import click
import msgspec
from msgspec.structs import replace

from batchscribe import settings as configuration
from batchscribe.cli.app import App
from batchscribe.cli.terminal.layout import Column, print_table
from batchscribe.cli.terminal.plot import draw_points
from batchscribe.controller.commands.redo import find_by_session
from batchscribe.controller.tick import Ticked
from batchscribe.controller.tick import tick as one_tick
from batchscribe.core.figures import format_count
from batchscribe.core.messages import require_extra
from batchscribe.core.run.manifest import EngineSpec
from batchscribe.core.run.outcomes import Outcome
from batchscribe.core.run.runs import Run
from batchscribe.core.scan.chunks import audio_name, session_id, transcript_key
from batchscribe.core.text import transcripts
from batchscribe.errors import BatchscribeError, MisconfiguredError, ObjectNotFoundError
from batchscribe.ledger import Speed
from batchscribe.settings import Settings
from batchscribe.wiring.engines import engine_reports, list_limits
from batchscribe.wiring.scanners import open_scanner
from batchscribe.wiring.scheduler import open_scheduler
from batchscribe.wiring.seams import open_ledger, rate_of

_WORD = re.compile(r"[\w']+")

Sample = Mapping[str, bytes]
"""Audio files by name; the chunks of a session are in a folder."""
WordErrorRate = Callable[[list[str], list[str]], float]
"""(Reference, hypothesis) -> part of 1, more if words were added."""


class Compared(msgspec.Struct, frozen=True, kw_only=True):
    """Result of one engine and model. Error rates are parts of 1."""

    engine: str
    model: str
    words: int
    wer: float | None = None
    """Against the reference; None without one."""
    against: dict[str, float]
    """Against the words of each other candidate."""
    flags: dict[str, int]
    speed: float | None
    """Audio seconds per second of work, on this machine."""
    dollars_per_audio_hour: float | None = None
    """On the cheapest instance type whose speed with this model was measured by a run."""
    instance_type: str = ""

    @property
    def name(self) -> str:
        return f"{self.engine} {self.model}".strip()

    @property
    def error(self) -> float:
        """Error rate against the reference, else the mean against the others."""
        return self.wer if self.wer is not None else fmean(self.against.values()) if self.against else 0.0


def compare(app: App, what: Sequence[str], reference: Path | None, chosen: EngineSpec) -> list[Compared]:
    """Transcribes the sample with every candidate; the best first.

    Raises BatchscribeError if one fails.
    """
    word_error_rate = load_word_error_rate()
    spoken = split_words(reference.read_text()) if reference else None
    settings = app.settings
    candidates = list(_list_candidates(replace(chosen, language=settings.language, task=settings.task)))
    if not candidates:
        raise MisconfiguredError("no engine can run here: see `batchscribe engines` for the reasons")
    sample = _collect_sample(app, what)
    with open_ledger(settings, remember=False) as ledger:
        speeds = ledger.speeds()
    texts: dict[str, list[str]] = {}
    runs: dict[str, Run] = {}
    for spec in candidates:
        name = f"{spec.engine} {spec.model}".strip()
        click.echo(f"{name}: transcribing {format_count(len(sample), 'file')}", err=True)
        texts[name], runs[name] = _transcribe_sample(settings, spec, sample)
    found = [
        _make_comparison(
            spec,
            run=runs[name],
            words=texts[name],
            wer=None if spoken is None else word_error_rate(spoken, texts[name]),
            against={other: word_error_rate(texts[other], texts[name]) for other in texts if other != name},
            price=_find_price(settings, spec, speeds),
        )
        for spec, name in zip(candidates, texts, strict=True)
    ]
    return sorted(found, key=lambda one: one.error)


def split_words(text: str) -> list[str]:
    """The words in lower case, without punctuation."""
    return _WORD.findall(text.lower())


def print_comparison(app: App, found: Sequence[Compared]) -> None:
    prices = [
        "-" if one.dollars_per_audio_hour is None else f"${one.dollars_per_audio_hour:.4f}" for one in found
    ]
    rate = [f"{one.error:.1%}" for one in found]
    differs = [f"{fmean(one.against.values()):.1%}" if one.against else "-" for one in found]
    columns = [
        Column("engine", [one.engine for one in found]),
        Column("model", [one.model or "its own" for one in found]),
        *([Column("WER", rate, right=True)] if found[0].wer is not None else []),
        Column("differs", differs, right=True),
        Column("words", [str(one.words) for one in found], right=True, optional=3),
        Column("flags", [str(sum(one.flags.values())) for one in found], right=True, optional=2),
        Column("speed here", [f"{one.speed:.1f} x" if one.speed else "-" for one in found], right=True),
        Column("$/audio hour", prices, right=True, optional=1),
        Column("on", [one.instance_type or "-" for one in found], optional=4),
    ]
    print_table(app.console, columns)
    app.console.print(
        "differs: mean word error rate against the other rows; $/audio hour: on the cheapest instance type "
        "that a run of yours has measured",
        markup=False,
    )
    if any(one.wer is not None and one.wer > 1 for one in found):
        app.console.print(
            "WER above 100 %: the reference must hold the texts of all files and sessions, in the order "
            "given",
            markup=False,
        )


def draw_comparison(found: Sequence[Compared], file: Path) -> None:
    """Draws error rate against price, else against working time."""
    prices = [one.dollars_per_audio_hour for one in found if one.dollars_per_audio_hour is not None]
    priced = len(prices) == len(found)
    xs = prices if priced else [60 / one.speed if one.speed else 0.0 for one in found]
    points = [(one.name, x, 100 * one.error) for one, x in zip(found, xs, strict=True)]
    draw_points(
        file,
        points,
        across="$ per audio hour" if priced else "minutes of work per audio hour, on this machine",
        up="word error rate, %" if found[0].wer is not None else "difference from the others, %",
        least_height=1.0,
    )


def _list_candidates(chosen: EngineSpec) -> Iterator[EngineSpec]:
    """Every usable engine with each of its models here.

    Left out are models that cannot do the task.
    """
    for report in engine_reports(lambda name: replace(chosen, engine=name, model=""), chosen.engine):
        here = [name for name, there in report.models.items() if there]
        models = [chosen.model] if chosen.model and report.name == chosen.engine else here
        if not report.models and report.usable:
            models = [""]
        for model in models:
            spec = replace(chosen, engine=report.name, model=model)
            if limits := list_limits(spec):
                click.echo(f"{report.name} {model}: left out, {'; '.join(limits)}", err=True)
            else:
                yield spec


def _collect_sample(app: App, what: Sequence[str]) -> Sample:
    """Reads files of this machine, and sessions of the source. Raises ObjectNotFoundError."""
    sample: dict[str, bytes] = {}
    for number, each in enumerate(what, start=1):
        if (path := Path(each)).is_file():
            if audio_name(path.name) is None:
                raise MisconfiguredError(f"{each} is not the name of an audio file")
            # In a folder of its own: two files may have one name, or one stem.
            sample[f"{number:03}/{path.name}"] = path.read_bytes()
            continue
        sample |= _read_session(app, each)
    return sample


def _read_session(app: App, name: str) -> Sample:
    missing = f"there is neither a file nor a session {name!r}: `batchscribe scan` lists the sessions"
    if not app.settings.source:
        raise ObjectNotFoundError(missing)
    scanner = open_scanner(app.settings)
    try:
        found = find_by_session(scanner, session_id(app.make_relative(name)))
    except ObjectNotFoundError as error:
        raise ObjectNotFoundError(missing) from error
    return {audio.info.key: scanner.source.get(audio.info.key).data for audio in found}


def _transcribe_sample(settings: Settings, spec: EngineSpec, sample: Sample) -> tuple[list[str], Run]:
    """Runs a candidate on the sample. Raises BatchscribeError if it fails."""
    with tempfile.TemporaryDirectory(prefix="batchscribe-compare-") as folder:
        home = Path(folder)
        for name, data in sample.items():
            file = home / "bucket" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
        with open_scheduler(_settings_of(home, settings, spec), manual=True) as made, made.lock.held():
            ticked = one_tick(made.world, made.config)
        run = find_completed(ticked, f"{spec.engine} {spec.model} did not complete the sample")
        return _read_words(home / "bucket", sample), run


def find_completed(ticked: Ticked, problem: str) -> Run:
    """The tick's run. Raises BatchscribeError with the `problem` if it failed."""
    run = ticked.runs[-1] if ticked.runs else None
    if run is None or run.outcome is not Outcome.COMPLETED:
        why = run.detail if run else ticked.decision.reason.sentence
        raise BatchscribeError(f"{problem}: {why}")
    return run


def _settings_of(home: Path, settings: Settings, spec: EngineSpec) -> Settings:
    flags = {
        "BATCH_SOURCE": (home / "bucket").as_uri(),
        "BATCH_ENGINE": spec.engine,
        "BATCH_LANGUAGE": spec.language or "auto",
        "BATCH_CHANNELS": settings.channels,
        "BATCH_TASK": spec.task,
        "GPU_PROVIDER": "local",
        "WHISPER_COMPUTE_TYPE": spec.compute_type,
    }
    if spec.model:
        flags["WHISPER_MODEL"] = spec.model
    return configuration.load({}, folder=home, flags=flags)


def _read_words(bucket: Path, keys: Iterable[str]) -> list[str]:
    """The words of all transcripts, in the order of the keys."""
    files = [bucket / transcript_key(name) for key in keys if (name := audio_name(key))]
    return [word for file in files for word in split_words(transcripts.decode(file.read_bytes()).text)]


def _make_comparison(
    spec: EngineSpec,
    *,
    run: Run,
    words: list[str],
    wer: float | None,
    against: dict[str, float],
    price: tuple[float, str] | None,
) -> Compared:
    work = run.worked.after_load
    return Compared(
        engine=spec.engine,
        model=spec.model,
        words=len(words),
        wer=wer,
        against=against,
        flags=dict(run.worked.flags),
        speed=run.audio_seconds / work if work else None,
        dollars_per_audio_hour=price[0] if price else None,
        instance_type=price[1] if price else "",
    )


def _find_price(settings: Settings, spec: EngineSpec, speeds: Sequence[Speed]) -> tuple[float, str] | None:
    """(dollars per audio hour, type) on the cheapest measured type, if any."""
    rate, found = rate_of(settings), list[tuple[float, str]]()
    for speed in speeds:
        if (speed.engine, speed.model) == (spec.engine, spec.model) and speed.instance_type:
            with suppress(MisconfiguredError):  # a type without a known price is no offer
                found.append((rate(speed.instance_type).per_hour.dollars / speed.speed, speed.instance_type))
    return min(found, default=None)


def load_word_error_rate() -> WordErrorRate:
    """Returns jiwer's word error rate. Raises MisconfiguredError if it is not installed."""
    with require_extra("the word error rate needs its extra", "demo"):
        import jiwer

    def rate(reference: list[str], hypothesis: list[str]) -> float:
        return (
            float(jiwer.wer(" ".join(reference), " ".join(hypothesis)))
            if reference
            else float(bool(hypothesis))
        )

    return rate
