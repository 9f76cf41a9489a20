"""The simulator is itself tested: bugs planted in the controller are found, by the invariants they break."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

import pytest

from simulation.episode import play
from simulation.listening import listening
from simulation.weather import ACTORS, FLEETS, FOCI, Focus
from support import planted

BUDGET = 500
QUIET = {"crash": 0.0, "fault": 0.0}
ENDLESS = {"crash": 0, "fault": 0, "endless": 0.05, "droughts": 0, "people": 0, "outages": 0} | dict.fromkeys(
    ("poison", "killer", "dies", "hangs", "lost_agent", "deaf_boot", "broken_boot"), 0.0
)
EXPIRED = QUIET | {"droughts": 10}
DAMAGED = QUIET | {"ledger_files": 6, "hangs": 0.05}
WRITER = ACTORS["a writer of the bucket"]
MANY_PEOPLE = {"people": 10, "outages": 3, "lost_disk": 0.0}


@dataclass(frozen=True)
class Bug:
    """`breaks` lists what may be found first. `seed` found it last time, and is tried first."""

    plant: Callable[[pytest.MonkeyPatch], None]
    breaks: AbstractSet[str]
    seed: int = 0
    focus: Focus = field(default_factory=dict)

    def seeds(self) -> Iterable[int]:
        return (self.seed, *(seed for seed in range(BUDGET) if seed != self.seed))


BUGS = {
    "started before its record": Bug(planted.intent_after_start, {"I1"}),
    "started before it is recorded that it may be": Bug(planted.started_before_it_is_recorded, {"I1"}, 9),
    "disarmed before the stop was observed": Bug(planted.disarm_before_the_stop_was_seen, {"I1"}, 3),
    "no teardown on an exception": Bug(
        planted.no_release_on_an_exception,
        {"I1", "I7"},
        38,
        QUIET | {"droughts": 5, "endless": 0.3, "people": 0, "foreign_runs": 0},
    ),
    "the worker's report for the count": Bug(planted.the_workers_word_for_the_count, {"I4"}, 44),
    "the worker's report for the transcripts": Bug(planted.the_workers_word_for_the_transcripts, {"I5"}, 3),
    "a held lock is unlinked": Bug(planted.a_held_lock_is_unlinked, {"I6"}, 8),
    "the tag is forgotten": Bug(planted.the_tag_is_forgotten, {"I1", "I7", "I8", "I11"}, 1),
    "the tag is left": Bug(planted.the_tag_is_left, {"I8"}, 1),
    "a foreign instance is adopted": Bug(planted.a_stranger_is_adopted, {"I3"}, 4, FOCI["foreign claims"]),
    "settled before the stop was observed": Bug(
        planted.settled_before_the_stop_was_seen, {"I1", "I7", "I8"}, 2
    ),
    "billed while it was observed only": Bug(planted.billed_while_seen_only, {"I7"}, 3),
    "billed to its settlement": Bug(planted.billed_to_the_settlement, {"I7"}, 3),
    "previously failed chunks count": Bug(planted.troubled_chunks_count, {"I10"}, 0, QUIET | {"poison": 0.6}),
    "a vendor's words are in an alert": Bug(planted.a_vendors_words_are_told, {"I9"}, 2),
    "a guard that comes too late": Bug(
        planted.a_guard_that_comes_too_late, {"I2"}, 99, {"outages": 4, "deaf_boot": 1.0, "lost_disk": 0.0}
    ),
    "any instance is stopped": Bug(planted.anybodys_instance_is_stopped, {"I3"}, 187, MANY_PEOPLE),
    "a claim is left": Bug(planted.a_claim_is_left, {"I8"}, 5),
    "quarantine is forgotten": Bug(planted.quarantine_is_forgotten, {"I4"}, 11),
    "its other type is kept": Bug(planted.type_is_kept, {"I8"}, 25, FOCI["other types"]),
    "nothing is billed": Bug(planted.nothing_is_billed, {"I13"}, 1),
    "a worker is left on a borrowed machine": Bug(
        planted.a_worker_is_left_on_a_borrowed_machine,
        {"I2"},
        89,
        QUIET | {"use": 1.0, "people": 8, "hangs": 0.5, "lost_agent": 1.0},
    ),
    "foreign claims are ignored": Bug(planted.others_claims_are_ignored, {"I3"}, 198, FOCI["foreign claims"]),
    "stalled work is waited for": Bug(planted.hung_work_is_waited_for, {"P3"}, 0, QUIET | {"hangs": 0.3}),
    "the end of the work is not noticed": Bug(
        planted.a_last_word_is_not_heard, {"P1", "P2"}, 0, FOCI["work alone"]
    ),
    "no start ever pays": Bug(planted.no_start_ever_pays, {"I14"}, 1),
    "what is done is assigned again": Bug(planted.what_is_done_is_given_out_again, {"I5"}),
    "every alert is due": Bug(planted.every_alarm_is_due, {"P4"}, 2),
    "a mistake in the code": Bug(planted.a_mistake_in_the_code, {"E"}, 1),
    "a secret is logged": Bug(planted.a_secret_is_logged, {"I9"}, 1, EXPIRED),
    "a secret is stored": Bug(planted.a_secret_is_stored, {"I9"}, 1, EXPIRED),
    "a working instance is not polled": Bug(
        planted.nobody_looks_at_a_working_instance, {"P4"}, 3, FOCI["work alone"]
    ),
    "every stop is forced": Bug(planted.every_stop_is_forced, {"I3"}, 3),
    "its own start is not recognized": Bug(
        planted.its_own_start_is_not_known_again, {"I3"}, 148, MANY_PEOPLE
    ),
    "a clock that was set back grants grace": Bug(
        planted.a_clock_set_back_grants_grace, {"P1", "P4"}, 1, QUIET | {"jumps": 12}
    ),
    "an endless chunk in company goes free": Bug(
        planted.an_endless_chunk_in_company_goes_free, {"I11"}, 92, ENDLESS
    ),
    "a chunk without a transcript goes free": Bug(
        planted.what_is_passed_over_goes_free, {"I11"}, 1, QUIET | {"forgotten": 0.5}
    ),
    "a process that hangs is not killed": Bug(
        planted.a_process_that_hangs_is_not_killed, {"P1", "P3", "P4", "I2"}, 0, FOCI["a tick that hangs"]
    ),
    "the minute timer advances nothing": Bug(planted.the_minute_timer_advances_nothing, {"P1", "P4"}, 1),
    "a recovered run is billed from its recovery": Bug(
        planted.a_recovered_run_is_billed_from_its_recovery, {"I1", "I7"}, 25, FOCI["a lost ledger"]
    ),
    "a stored settlement proves the stop": Bug(
        planted.a_stored_settlement_proves_the_stop, {"I2", "I7", "I8"}, 0, WRITER
    ),
    "a copy on another host is the same scheduler": Bug(
        planted.a_copy_on_another_host_is_the_same_scheduler, {"I1", "I3", "I7"}, 0, ACTORS["a cloned host"]
    ),
    "any manifest is worked on": Bug(planted.any_manifest_is_worked_on, {"I12"}, 22, WRITER),
    "a run of other settings is refused": Bug(
        planted.a_run_of_other_settings_is_refused, {"I2", "P1", "P3", "P4"}, 8, ACTORS["edited settings"]
    ),
    "one run blocks the others": Bug(
        planted.one_run_blocks_the_others, {"I14", "P1", "P3", "P4"}, 0, DAMAGED
    ),
    "a damaged ledger ends every process": Bug(
        planted.a_damaged_ledger_ends_every_process, {"I8", "I14", "P1", "P3", "P4"}, 24, DAMAGED
    ),
    "a chunk that failed waits for company": Bug(
        planted.a_chunk_that_failed_waits_for_company, {"I14"}, 0, QUIET | {"poison": 0.3}
    ),
    "a clock set back bills nothing": Bug(
        planted.a_clock_set_back_bills_nothing, {"I13"}, 0, ACTORS["a clock set back"]
    ),
    "any record is believed": Bug(planted.any_record_is_believed, {"I7", "I12", "I13"}, 0, WRITER),
    "idle machines are kept": Bug(
        planted.idle_machines_are_kept,
        {"P1"},
        22,
        {**FLEETS["a fleet without faults"], "slow_machines": 0.4, "lost_agent": 1.0},
    ),
    "a lost create reply leaks a machine": Bug(
        planted.a_lost_create_reply_leaks_a_machine, {"I1", "I7", "I8"}, 22, FLEETS["lost replies of a fleet"]
    ),
    "every machine has the run's rate": Bug(
        planted.every_machine_has_the_runs_rate, {"I7"}, 1, FLEETS["a spot market"]
    ),
    "a rest is shared while its worker works": Bug(
        planted.a_rest_is_shared_while_its_worker_works, {"I5"}, 63, {**FLEETS["a slow machine"], **QUIET}
    ),
}


@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_found(
    name: str, monkeypatch: pytest.MonkeyPatch, record_property: Callable[[str, object], None]
) -> None:
    bug = BUGS[name]
    bug.plant(monkeypatch)
    with listening() as listener:
        for episodes, seed in enumerate(bug.seeds(), 1):
            violation = play(seed, listener, {"policies": 0.0, **bug.focus}).violation
            if violation:
                record_property("episodes", episodes)
                assert violation.split(":")[0] in bug.breaks, f"seed {seed}: {violation}"
                return
    raise AssertionError(f"{BUDGET} episodes did not find it")
