"""`batchscribe engines`: what can run here, how fast, and how well."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from msgspec.structs import replace

from batchscribe.cli.app import App, json_option, pass_app, print_json
from batchscribe.cli.terminal.layout import Column, print_table
from batchscribe.core.decide.offers import LOCAL
from batchscribe.core.decide.published_models import (
    AS_OF,
    AUTO,
    MODELS,
    SOURCE,
    SPEAKER_MODEL,
    PublishedModel,
    find_publisher,
    list_candidates,
)
from batchscribe.core.figures import format_count
from batchscribe.core.run.manifest import EngineSpec

if TYPE_CHECKING:
    from batchscribe.ledger import Speed
    from batchscribe.settings import Settings
    from batchscribe.wiring.engines import EngineReport

INDENT = 16
"""Width of the engine names, in columns."""
_file = click.Path(dir_okay=False, path_type=Path)


@click.command()
@click.option("--engine", default="auto", show_default=True, help="The engine that the model belongs to.")
@click.option("--model", default="", help="A model's name, or its folder on this machine.")
@click.option("--device", default="auto", show_default=True, help="auto, cuda or cpu.")
@click.option("--compute-type", default="auto", show_default=True, help="The number format.")
@click.option("--fetch", metavar="MODEL", help="Fetch a model of the engine onto this machine first.")
@click.option(
    "--compare",
    metavar="WHAT",
    multiple=True,
    help="Transcribe a file or a session with each engine and model.",
)
@click.option(
    "--reference",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Text that was spoken, for the word error rates of --compare.",
)
@click.option("--plot", type=_file, help="Draw error rate against price into a .png, .svg or .pdf.")
@json_option
@pass_app
def engines(
    app: App,
    /,
    *,
    fetch: str | None,
    compare: tuple[str, ...],
    reference: Path | None,
    plot: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Speech engines of this machine: availability, models, published and measured figures.

    The measured speed comes from the runs of this machine: audio seconds per second of work.
    """
    from batchscribe.wiring.engine_choice import engine_spec, spec_on_this_machine
    from batchscribe.wiring.engines import engine_reports, fetch_model
    from batchscribe.wiring.seams import open_ledger

    spec, settings = EngineSpec(**options), app.settings  # reading the settings opens the log
    if fetch:
        named = find_publisher(fetch) if spec.engine == AUTO else spec.engine
        folder = fetch_model(replace(spec, engine=named, model=fetch))
        click.echo(f"{fetch} is in {folder}", err=True)
        if fetch != SPEAKER_MODEL:
            spec = replace(spec, engine=named, model=spec.model or fetch)

    if (reference or plot) and not compare:
        raise click.UsageError("--reference and --plot need --compare")
    if compare:
        _compare_engines(app, spec, compare, reference, plot, as_json=as_json)
        return
    only = options["engine"]
    reports = engine_reports(partial(spec_on_this_machine, settings, spec), only)
    chosen = engine_spec(settings)
    models = [model for model in MODELS if only in {AUTO, model.engine}]
    with open_ledger(settings, remember=False) as ledger:
        speeds = ledger.speeds()
    if as_json:
        listed = [_build_document(report, speeds) for report in reports]
        print_json({"engines": listed, "auto": chosen, "published": list_published(models, speeds)})
        return
    for report in reports:
        state = "usable" if report.usable else "; ".join(report.problems)
        app.print_labelled(report.name, state, indent=INDENT)
        for line in _list_details(report, speeds):
            app.print_labelled("", line, indent=INDENT)
    if models:
        print_published(app, models, chosen, speeds)
        here = {name for report in reports for name, there in report.models.items() if there}
        for line in _list_notes(app, models, chosen, here):
            app.console.print(line, markup=False)


def _compare_engines(
    app: App,
    spec: EngineSpec,
    what: tuple[str, ...],
    reference: Path | None,
    plot: Path | None,
    *,
    as_json: bool,
) -> None:
    from batchscribe.cli.compare import compare, draw_comparison, print_comparison
    from batchscribe.cli.terminal.plot import check_plot

    if plot:
        check_plot(plot)
    found = compare(app, what, reference, spec)
    if plot:
        draw_comparison(found, plot)
    if as_json:
        print_json({"compared": found})
    else:
        print_comparison(app, found)


def _build_document(report: EngineReport, speeds: Sequence[Speed]) -> dict[str, object]:
    return {
        "name": report.name,
        "usable": report.usable,
        "problems": report.problems,
        "models": [{"name": name, "here": here} for name, here in report.models.items()],
        "speeds": [speed for speed in speeds if speed.engine == report.name],
    }


def _list_details(report: EngineReport, speeds: Sequence[Speed]) -> Iterator[str]:
    here = [name for name, there in report.models.items() if there]
    missing = [name for name, there in report.models.items() if not there]
    if report.models:
        yield f"models here: {', '.join(here) or 'none'}"
    if missing:
        yield f"to fetch: {', '.join(missing)}"
    for row in speeds:
        if row.engine == report.name:
            host = row.instance_type or "this machine"
            runs = format_count(row.runs, "run")
            yield f"measured: {row.speed:.1f} x with {row.model or 'its own model'} on {host} ({runs})"


def list_published(models: Sequence[PublishedModel], speeds: Sequence[Speed]) -> list[dict[str, object]]:
    """The table as JSON; languages null: about 100."""
    return [
        {
            "engine": model.engine,
            "model": model.name,
            "languages": sorted(model.languages) if model.languages else None,
            "translates": model.translates,
            "wer": model.wer,
            "long_wer": model.long_wer,
            "speed": model.speed,
            "megabytes": model.megabytes,
            "licence": model.licence,
            "source": SOURCE,
            "as_of": AS_OF,
            "measured": _find_measured(model, speeds),
        }
        for model in models
    ]


def print_published(
    app: App, models: Sequence[PublishedModel], chosen: EngineSpec, speeds: Sequence[Speed]
) -> None:
    """Prints the table of models; `*` marks the chosen one."""
    measured = [max(_find_measured(model, speeds), default=None) for model in models]
    columns = [
        Column("", ["*" if _is_chosen(model, chosen) else "" for model in models]),
        Column("model", [model.name for model in models]),
        Column("engine", [model.engine for model in models]),
        Column("for", [_describe_languages(model) for model in models]),
        Column("WER", [_format_figure(model.wer) for model in models], right=True),
        Column("long", [_format_figure(model.long_wer) for model in models], right=True),
        Column("speed", [_format_figure(model.speed) for model in models], right=True),
        Column("yours", [f"{speed:.0f}" if speed else "-" for speed in measured], right=True, optional=2),
        Column("size", [f"{model.megabytes / 1000:.1f}" for model in models], right=True),
        Column("licence", [model.licence for model in models], optional=1),
    ]
    app.console.print()
    print_table(app.console, columns)


def _list_notes(
    app: App, models: Sequence[PublishedModel], chosen: EngineSpec, here: Collection[str]
) -> Iterator[str]:
    """Lines below the table: the choice, units and sources."""
    settings = app.settings
    if any(_is_chosen(model, chosen) for model in models):
        yield f"* {chosen.engine} {chosen.model}: {_describe_origin(settings, chosen, here)}"
    best = next(iter(list_candidates(settings.engine, settings.language, settings.task)), None)
    offered = best in models and best is not None and best.name not in here and not _is_chosen(best, chosen)
    if best and offered and settings.model == AUTO and settings.provider == LOCAL:
        yield f"  better, but not on this machine: `batchscribe engines --fetch {best.name}`"
    yield (
        "WER: English, in %, of utterances and of long recordings; speed: audio seconds per second in large "
        f"batches ({SOURCE}, {AS_OF}); yours: the same of your own runs; size in GB; `-`: unknown"
    )
    yield "for: en is English, 25 are European languages, any are about 100 languages"
    licences = dict.fromkeys((model.licence, model.engine) for model in models)
    yield "licences: " + ", ".join(f"{licence} ({engine})" for licence, engine in licences)


def _describe_origin(settings: Settings, chosen: EngineSpec, here: Collection[str]) -> str:
    if settings.model == chosen.model:
        return "named by WHISPER_MODEL"
    language = f"with BATCH_LANGUAGE={chosen.language or AUTO}"
    if settings.provider != LOCAL:
        return f"{language}, by the next `batchscribe gpu setup`; a host keeps what it was prepared for"
    if chosen.model in here:
        return f"{language}, of the models on this machine"
    return f"{language}; not on this machine: `batchscribe engines --fetch {chosen.model}`"


def _find_measured(model: PublishedModel, speeds: Sequence[Speed]) -> list[float]:
    return [each.speed for each in speeds if (each.engine, each.model) == (model.engine, model.name)]


def _is_chosen(model: PublishedModel, chosen: EngineSpec) -> bool:
    return (model.engine, model.name) == (chosen.engine, chosen.model)


def _describe_languages(model: PublishedModel) -> str:
    if model.languages is None:
        return "any"
    return "en" if len(model.languages) == 1 else str(len(model.languages))


def _format_figure(figure: float | None) -> str:
    return "-" if figure is None else str(figure)


@click.command()
@click.option("--test", "only_test", is_flag=True, help="Test the engine on this processor now.")
@pass_app
def lane(app: App, *, only_test: bool) -> int:
    """Transcribe on this machine's processor what ticks request (BATCH_CPU_LANE).

    `install systemd` makes a unit that starts it; ticks start the self-test themselves. Exit code 1 if the
    self-test fails.
    """
    from batchscribe.wiring.lane import describe_test, open_lane, process_requests, run_self_test

    place = open_lane(app.settings)
    if not only_test:
        for line in process_requests(place):
            app.console.print(line, markup=False)
        return 0
    test = run_self_test(place)
    app.console.print(describe_test(test), markup=False)
    return int(bool(test.error))
