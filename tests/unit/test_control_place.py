"""Control objects in a store of their own: what lies where, what is still read elsewhere, and a change."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest

from batchscribe import __version__
from batchscribe.control_place import SplitStore, build_url, combine_stores, find_control_url
from batchscribe.controller.commands.redo import list_quarantined, release_quarantined
from batchscribe.controller.context import World
from batchscribe.controller.records import write_record
from batchscribe.controller.recovery import adopt_run, recover
from batchscribe.controller.rehearsal_place import find_run_world, is_rehearsal, make_rehearsal_world
from batchscribe.controller.scan import Scanner
from batchscribe.controller.tick import reconcile, tick, watch
from batchscribe.core import keys
from batchscribe.core.run import manifest as wire
from batchscribe.core.run.host import (
    CheckRequest,
    ClaimLaunch,
    HostClaim,
    HostPlace,
    HostReply,
    InstanceRecord,
)
from batchscribe.core.run.instances import Claim, Instance, InstanceState
from batchscribe.core.run.manifest import EngineSpec, Failure, FailureKind, QuarantineRecord
from batchscribe.core.run.outcomes import Outcome
from batchscribe.core.run.records import decode_run, encode_run
from batchscribe.core.run.runs import RunState
from batchscribe.errors import MisconfiguredError, ObjectNotFoundError
from batchscribe.ledger import Ledger
from batchscribe.settings import load
from batchscribe.testing.clock import FakeClock
from batchscribe.testing.compute import FakeCompute
from batchscribe.testing.store import MemoryStore
from batchscribe.wiring import worker
from batchscribe.wiring.host_access import open_host_setup
from support.stores import NOW
from support.world import INSTANCE, Stage, once

CONTROL = "memory://control"


@pytest.fixture
def at(at: Stage) -> Stage:
    at.upload(120)
    at.clock.sleep(600)
    return at


@pytest.fixture
def control(at: Stage) -> MemoryStore:
    return MemoryStore(at.clock, url=CONTROL)


def with_control(at: Stage, control: MemoryStore) -> World:
    """The world with BATCH_CONTROL, in which the worker works as well."""
    before, output = at.world, SplitStore(at.store, control)
    at.worker.store = output

    def scanner(_manual: bool) -> Scanner:
        return Scanner(at.store, output, clock=at.clock, min_age=timedelta(minutes=5))

    def elsewhere(world: World, run: object) -> World:
        assert getattr(run, "control", None) == ""
        at.worker.store = at.store
        return replace(before, ledger=world.ledger)

    return replace(before, output=output, home=output, scanner=scanner, elsewhere=elsewhere)


def listed(store: MemoryStore, prefix: str = "") -> list[str]:
    return [info.key for info in store.list(prefix)]


def test_a_control_object_loses_its_first_folder_and_nothing_else(at: Stage, control: MemoryStore) -> None:
    both = SplitStore(at.store, control)
    both.create(keys.intent("r"), b"1")
    both.replace("a/transcript.json", b"2")
    assert control.get("runs/r/intent.json").data == both.get(keys.intent("r")).data == b"1"
    assert at.store.get("a/transcript.json").data == b"2"
    assert [info.key for info in both.list(keys.RUNS)] == [keys.intent("r")]
    assert [info.key for info in both.list(keys.RUNS, after=keys.intent("r"))] == []
    assert build_url(both, keys.intent("r")) == f"{CONTROL}/runs/r/intent.json"
    both.delete(keys.intent("r"))
    assert listed(control) == []


def test_the_default_place_by_its_name_is_no_place_of_its_own(at: Stage) -> None:
    named = combine_stores(at.store, MemoryStore(at.clock, url=f"{at.store.url}/_batchscribe"))
    assert named is at.store
    assert find_control_url(named) == ""


def test_a_whole_run_puts_no_control_object_below_the_output(at: Stage, control: MemoryStore) -> None:
    (run,) = tick(with_control(at, control), at.config).runs
    assert (run.outcome, run.chunks_done, run.control) == (Outcome.COMPLETED, 120, CONTROL)
    assert listed(at.store, keys.CONTROL) == []
    assert listed(control, f"runs/{run.id}/") != []
    assert not [key for key in listed(control) if not key.startswith("runs/")]


def test_a_run_that_its_ledger_lost_is_recovered_from_the_control_store(
    at: Stage, control: MemoryStore, tmp_path: Path
) -> None:
    world = with_control(at, control)
    tick(world, at.config, wait=False)
    (run,) = world.ledger.open_runs()
    with Ledger(tmp_path / "new.sqlite") as ledger:
        closed, *_next = tick(replace(world, ledger=ledger), at.config).runs
    assert (closed.id, closed.control) == (run.id, CONTROL)


def test_a_run_that_is_taken_over_is_settled_in_our_control_store(at: Stage, control: MemoryStore) -> None:
    world = with_control(at, control)
    at.compute.start(Claim(instance=INSTANCE, run="theirs", deadline=at.clock.now()))
    run = adopt_run(world, at.config, "theirs", Outcome.TIMED_OUT, "late")
    assert run.control == CONTROL


def test_a_record_of_another_place_is_not_ours(at: Stage, control: MemoryStore) -> None:
    once(at)
    (run,) = at.ledger.open_runs()
    world = with_control(at, control)
    write_record(world, replace(run, id="copied"))
    write_record(world, replace(run, id="own", control=CONTROL))
    recover(world, at.config)
    assert {each.id for each in at.ledger.open_runs()} == {run.id, "own"}


def test_only_failures_and_quarantine_are_still_read_below_the_output(
    at: Stage, control: MemoryStore
) -> None:
    """Uploaders of audio may write there: at worst that holds a chunk back."""
    both = SplitStore(at.store, control)
    for key in (
        keys.attempt("a", "e", "r"),
        keys.compacted("0"),
        keys.forgotten("0"),
        keys.quarantine("a"),
    ):
        at.store.create(key, b"old")
        assert both.get(key).data == b"old"
    for key in (keys.intent("r"), keys.manifest("r", 0), keys.instance(INSTANCE), keys.cancel("r", 0)):
        at.store.create(key, b"forged")
        with pytest.raises(ObjectNotFoundError):
            both.get(key)
    assert [info.key for info in both.list(keys.RUNS)] == []
    assert [info.key for info in both.list(keys.INSTANCES)] == []


def test_a_new_object_wins_over_a_former_one_and_both_are_deleted(at: Stage, control: MemoryStore) -> None:
    both, key = SplitStore(at.store, control), keys.quarantine("a")
    at.store.create(key, b"old")
    at.store.create(keys.quarantine("b"), b"old")
    both.create(key, b"new")
    found = [info.key for info in both.list(keys.QUARANTINE)]
    assert found == sorted([key, keys.quarantine("b")])
    assert both.get(key).data == b"new"
    both.delete(key)
    assert (key in listed(at.store), listed(control)) == (False, [])


def test_what_failed_before_the_setting_still_counts_and_can_be_released(
    at: Stage, control: MemoryStore
) -> None:
    infos = list(at.store.list("s/"))
    held = QuarantineRecord(
        key=infos[0].key, etag=infos[0].etag, message="no sound", decoder="", attempts=3, at=NOW
    )
    at.store.create(keys.quarantine(held.key), wire.encode(held))
    world = with_control(at, control)
    assert world.scanner(False).backlog().quarantined == 1
    assert [record.key for record in list_quarantined(world.output)] == [held.key]
    release_quarantined(world.output, [held.key])
    assert world.scanner(False).backlog().quarantined == 0


def test_former_failures_cost_three_listings_and_no_request_each(at: Stage, control: MemoryStore) -> None:
    def requests(world: World) -> int:
        before = sum(at.store.calls.values()) + sum(control.calls.values())
        world.scanner(False).rules()
        return sum(at.store.calls.values()) + sum(control.calls.values()) - before

    without = requests(at.world)
    world = with_control(at, control)
    assert requests(world) == without + 3


def test_a_change_is_refused_while_a_run_is_open_and_the_run_ends_at_its_own_place(
    at: Stage, control: MemoryStore
) -> None:
    tick(at.world, at.config, wait=False)
    (run,) = at.ledger.open_runs()
    world = with_control(at, control)
    with pytest.raises(MisconfiguredError, match=rf"BATCH_CONTROL was changed while run {run.id} is open"):
        tick(world, at.config, wait=False)
    for _ in range(60):
        at.clock.sleep(60)
        watch(world, at.config)
    (closed,) = at.ledger.runs(run.created)
    assert (closed.state, closed.outcome) == (RunState.SETTLED, Outcome.COMPLETED)
    assert keys.settlement(run.id) in listed(at.store)
    assert listed(control) == []
    assert not at.compute.describe(INSTANCE).state.billable
    at.upload(120, session="later")
    at.clock.sleep(600)
    at.worker.store = world.output
    (later,) = tick(world, at.config).runs
    assert (later.control, later.outcome) == (CONTROL, Outcome.COMPLETED), "the next run is at the new place"


def test_reconcile_ends_a_run_at_its_own_place(at: Stage, control: MemoryStore) -> None:
    for _ in range(6):
        once(at)
    (run,) = at.ledger.open_runs()
    at.clock.sleep((run.deadline - at.clock.now()).total_seconds())
    (closed,) = reconcile(with_control(at, control), at.config)
    assert (closed.id, closed.open) == (run.id, False)
    assert keys.settlement(run.id) in listed(at.store)


def test_a_run_of_an_earlier_version_has_its_control_objects_below_its_output(at: Stage) -> None:
    once(at)
    (run,) = at.ledger.open_runs()
    fields = msgspec.json.decode(encode_run(run), type=dict[str, object])
    assert fields.pop("control") == ""
    assert decode_run(msgspec.json.encode(fields)) == run


def test_a_rehearsal_is_in_the_control_store(at: Stage, control: MemoryStore) -> None:
    world = with_control(at, control)
    there = make_rehearsal_world(world, "x")
    there.output.create("a.ogg", b"1")
    there.output.create(keys.intent("r"), b"2")
    assert there.output.url == f"{CONTROL}/rehearsal/x"
    assert listed(control) == ["rehearsal/x/_batchscribe/runs/r/intent.json", "rehearsal/x/a.ogg"]
    once(at)
    (run,) = at.ledger.open_runs()
    run = replace(run, source=there.output.url, output=there.output.url, control=CONTROL)
    assert is_rehearsal(run)
    assert find_run_world(world, at.config, run).output.url == there.output.url
    assert not is_rehearsal(replace(run, output="memory://rehearsal/x"))


def test_a_host_knows_its_control_store_from_its_set_up(tmp_path: Path) -> None:
    place = HostPlace(instance=INSTANCE, home="s3://bucket/out", control="s3://control/c")
    assert place.control_of("s3://bucket/out/") == "s3://control/c"
    assert place.control_of("s3://control/c/rehearsal/x") == ""
    before = msgspec.json.encode({"instance": INSTANCE, "home": "s3://bucket/out"})
    assert wire.decode(before, HostPlace).control_of("s3://bucket/out") == ""


def test_a_worker_reads_its_manifest_from_the_control_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores = {url: MemoryStore(FakeClock(), url=url) for url in ("s3://b/out", "s3://c")}
    monkeypatch.setattr(worker, "open_store", lambda url, **_options: stores[url])
    stores["s3://b/out"].create(keys.manifest("r", 0), b"forged")
    location = f"s3://b/out/{keys.manifest('r', 0)}"
    with pytest.raises(ObjectNotFoundError):
        worker.read_manifest(location, "s3://c")


def test_a_claim_is_only_found_in_the_control_store(at: Stage, control: MemoryStore) -> None:
    claim = HostClaim(run="r", created=NOW, deadline=NOW, output=at.store.url, launch=ClaimLaunch.BOOT)
    record = InstanceRecord(instance=INSTANCE, release="1", at=NOW, claim=claim)
    at.store.create(keys.instance(INSTANCE), msgspec.json.encode(record))
    with pytest.raises(ObjectNotFoundError):
        SplitStore(at.store, control).get(keys.instance(INSTANCE))


def test_a_failure_that_is_in_both_places_counts_once(at: Stage, control: MemoryStore) -> None:
    infos = list(at.store.list("s/"))
    failure = Failure(
        key=infos[0].key, etag=infos[0].etag, run="r", kind=FailureKind.CHUNK, message="", at=NOW
    )
    for store, key in (
        (at.store, keys.attempt(failure.key, failure.etag, "r")),
        (control, keys.attempt(failure.key, failure.etag, "r").removeprefix(keys.CONTROL)),
    ):
        store.create(key, wire.encode(failure))
    trouble = with_control(at, control).scanner(False).rules().trouble
    ((only,),) = trouble.values()
    assert only.attempts == 1


def test_a_set_up_leaves_the_control_store_on_the_host_and_a_check_asks_for_it(tmp_path: Path) -> None:
    asked: dict[str, bytes] = {}

    class Host:
        def ask(self, _instance: Instance, word: str, data: bytes = b"", *, timeout: float) -> HostReply:
            assert timeout
            asked[word] = data
            return HostReply(release=__version__)

    environ = {"BATCH_SOURCE": "s3://b/audio", "BATCH_CONTROL": "s3://c/x", "GPU_INSTANCE_ID": INSTANCE}
    settings = load(environ | {"AWS_REGION": "us-east-2"}, folder=tmp_path)
    output = SplitStore(MemoryStore(FakeClock()), MemoryStore(FakeClock(), url="s3://c/x"))
    compute = FakeCompute(FakeClock())
    made = open_host_setup(settings, FakeClock(), compute, output, EngineSpec(engine="pocketsphinx"))
    made = replace(made, client=Host(), shutdown=lambda _instance: "terminate")
    seen = Instance(id=INSTANCE, state=InstanceState.RUNNING)
    assert list(made._install_units(seen)) == []
    list(made._request_check(seen, boots=True))
    assert wire.decode(asked["place"], HostPlace).control == "s3://c/x"
    assert wire.decode(asked["check"], CheckRequest).control == "s3://c/x"
