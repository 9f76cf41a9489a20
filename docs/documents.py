"""The JSON documents: one table of fields for each, from the types that write them."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec
from msgspec import inspect as types

from batchscribe.cli.prices import PriceList
from batchscribe.controller.commands.rehearsal import Proof
from batchscribe.controller.commands.why import ChunkHistory
from batchscribe.core.decide.simulation import Simulation
from batchscribe.core.decide.start_sum import StartSum
from batchscribe.core.run.host import InstanceRecord
from batchscribe.core.run.manifest import ExitRecord, Failure, Manifest, Progress, QuarantineRecord
from batchscribe.core.run.period import Period
from batchscribe.core.run.report import RunReport
from batchscribe.core.text.transcripts import SessionTranscript, Transcript
from batchscribe.core.text.voices import ChunkVoices


class Document(NamedTuple):
    """A JSON document: the name of its schema, its type, and where it is found."""

    name: str
    kind: type
    place: str


DOCUMENTS = (
    Document("transcript", Transcript, "`transcription-….json` of each chunk"),
    Document("voices", ChunkVoices, "`speakers-….json` of each chunk, with `BATCH_SPEAKERS`"),
    Document("session", SessionTranscript, "`transcript.json` of each session, and `export --format json`"),
    Document("run-report", RunReport, "`batch-reports/batch-….json`, and `runs` of `tick --json`"),
    Document("period", Period, "`report --format json`"),
    Document("simulation", Simulation, "`simulate --json`"),
    Document("sum", StartSum, "`sum` of `tick --dry-run --json` and `run --dry-run --json`"),
    Document("prices", PriceList, "each entry of `regions` of `prices --json`"),
    Document("why", ChunkHistory, "`why KEY --json`"),
    Document("proof", Proof, "each entry of `proofs` of `rehearse --json`"),
    Document("quarantine", QuarantineRecord, "`_batchscribe/quarantine/…`, and `quarantine list --json`"),
    Document("attempt", Failure, "`_batchscribe/attempts/…`"),
    Document("manifest", Manifest, "`_batchscribe/runs/<run>/workers/0/manifest.json`"),
    Document("progress", Progress, "`_batchscribe/runs/<run>/workers/0/progress.json`"),
    Document("exit-record", ExitRecord, "`_batchscribe/runs/<run>/workers/0/exit.json`"),
    Document("instance", InstanceRecord, "`_batchscribe/instances/<instance>.json`"),
)


def schemas() -> Iterator[tuple[str, dict[str, Any]]]:
    for document in DOCUMENTS:
        yield document.name, msgspec.json.schema(document.kind)


def describe() -> str:
    return "\n\n".join(part for document in DOCUMENTS for part in _describe_document(document))


def _describe_document(document: Document) -> Iterator[str]:
    yield f"## {document.name}"
    meaning = " ".join(str(vars(document.kind).get("__doc__") or "").split())
    yield f"{document.place}. {meaning}".rstrip()
    rows = [f"| `{path}` | {kind} | {meaning} |" for path, kind, meaning in _rows(document.kind, "")]
    yield "\n".join(["| field | type | meaning |", "| --- | --- | --- |", *rows])


def _rows(kind: type, prefix: str) -> Iterator[tuple[str, str, str]]:
    """(path, type, meaning) of each field, those of objects inside included."""
    meanings = _meanings(kind)
    for each in types.type_info(kind).fields:  # type: ignore[attr-defined]  # each kind has fields
        path = f"{prefix}{each.encode_name}"
        name, inner, step = _describe_type(each.type)
        yield path, name, meanings.get(each.name, "")
        if inner is not None:
            yield from _rows(inner, f"{path}{step}.")


def _describe_type(kind: types.Type) -> tuple[str, type | None, str]:
    """(name, type of the objects inside, step to them in a path)."""
    match kind:
        case types.UnionType(types=options):
            real = [option for option in options if not isinstance(option, types.NoneType)]
            name, inner, step = _describe_type(real[0])
            return f"{name} or null" if len(real) < len(options) else name, inner, step
        case types.StructType(cls=cls) | types.DataclassType(cls=cls):
            return "object", cls, ""
        case types.VarTupleType(item_type=item) | types.ListType(item_type=item):
            name, inner, step = _describe_type(item)
            return f"list of {'objects' if inner else name}", inner, f"[]{step}"
        case types.DictType(value_type=value):
            return f"object of {_describe_type(value)[0]}", None, ""
        case types.EnumType(cls=cls):
            return ", ".join(f"`{member.value}`" for member in cls), None, ""
        case _:
            return NAMES[type(kind)], None, ""


NAMES: dict[type, str] = {
    types.StrType: "text",
    types.IntType: "whole number",
    types.FloatType: "number",
    types.BoolType: "boolean",
    types.BytesType: "base64",
    types.DateTimeType: "time",
}


def _meanings(kind: type) -> dict[str, str]:
    """The text below each field in the source, by the field's name; of base classes, too."""
    found: dict[str, str] = {}
    for cls in reversed(kind.__mro__):
        if cls.__module__.startswith("batchscribe."):
            found |= _meanings_in(cls)
    return found


def _meanings_in(cls: type) -> dict[str, str]:
    body = ast.parse(inspect.getsource(cls)).body[0]
    assert isinstance(body, ast.ClassDef)
    found: dict[str, str] = {}
    for field, text in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
            assert isinstance(field.target, ast.Name)
            assert isinstance(text.value, ast.Constant)
            found[field.target.id] = re.sub(r"\bNone\b", "null", " ".join(str(text.value.value).split()))
    return found
