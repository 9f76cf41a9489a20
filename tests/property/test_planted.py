"""The simulator is itself tested: bugs planted in the controller are found, by the invariants they break."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import pytest

from batchscribe.testing.simulation.episode import play
from batchscribe.testing.simulation.listening import listening
from batchscribe.testing.simulation.weather import FOCI
from support import planted

BUDGET = 2000


@dataclass(frozen=True)
class Bug:
    """`breaks` what may be found first; under the weather of this `focus`, where it is rare."""

    plant: Callable[[pytest.MonkeyPatch], None]
    breaks: AbstractSet[str]
    focus: str = ""


BUGS = {
    "intent after start": Bug(planted.intent_after_start, {"I1"}),
    "disarmed before the stop was seen": Bug(planted.disarm_before_the_stop_was_seen, {"I1"}),
    "no release on an exception": Bug(planted.no_release_on_an_exception, {"I1", "I7"}),
    "the worker's word for the count": Bug(planted.the_workers_word_for_the_count, {"I4"}),
    "the worker's word for the transcripts": Bug(planted.the_workers_word_for_the_transcripts, {"I5"}),
    "a stale lock is unlinked": Bug(planted.a_stale_lock_is_unlinked, {"I6"}),
    "the tag is forgotten": Bug(planted.the_tag_is_forgotten, {"I1", "I7", "I8", "I11"}),
    "the tag is left": Bug(planted.the_tag_is_left, {"I8"}),
    "a stranger is adopted": Bug(planted.a_stranger_is_adopted, {"I3"}),
    "settled before the stop was seen": Bug(planted.settled_before_the_stop_was_seen, {"I1", "I7", "I8"}),
    "billed while it was seen only": Bug(planted.billed_while_seen_only, {"I7"}),
    "billed to its settlement": Bug(planted.billed_to_the_settlement, {"I7"}),
    "troubled chunks count": Bug(planted.troubled_chunks_count, {"I10"}),
    "a vendor's words are told": Bug(planted.a_vendors_words_are_told, {"I9"}),
    "a guard that comes too late": Bug(planted.a_guard_that_comes_too_late, {"I2"}),
    "anybody's instance is stopped": Bug(planted.anybodys_instance_is_stopped, {"I3"}),
    "a claim is left": Bug(planted.a_claim_is_left, {"I8"}),
    "quarantine is forgotten": Bug(planted.quarantine_is_forgotten, {"I4"}),
    "its other type is kept": Bug(planted.type_is_kept, {"I8"}, "other types"),
    "nothing is billed": Bug(planted.nothing_is_billed, {"I7"}),
    "a worker is left on a borrowed machine": Bug(
        planted.a_worker_is_left_on_a_borrowed_machine, {"I2"}, "a borrowed machine"
    ),
    "others' claims are ignored": Bug(planted.others_claims_are_ignored, {"I3"}, "another claims it"),
    "hung work is waited for": Bug(planted.hung_work_is_waited_for, {"P3"}),
    "a last word is not heard": Bug(planted.a_last_word_is_not_heard, {"P1", "P2"}),
    "no start ever pays": Bug(planted.no_start_ever_pays, {"I11"}),
    "what is done is given out again": Bug(planted.what_is_done_is_given_out_again, {"I5"}),
    "every alarm is due": Bug(planted.every_alarm_is_due, {"P4"}),
    "a mistake in the code": Bug(planted.a_mistake_in_the_code, {"E"}),
    "a secret is logged": Bug(planted.a_secret_is_logged, {"I9"}),
    "a secret is stored": Bug(planted.a_secret_is_stored, {"I9"}),
    "nobody looks at a working instance": Bug(planted.nobody_looks_at_a_working_instance, {"P4"}),
    "every stop is forced": Bug(planted.every_stop_is_forced, {"I3"}),
    "its own start is not known again": Bug(
        planted.its_own_start_is_not_known_again, {"I3"}, "whose start was it"
    ),
    "a clock set back puts the look off": Bug(
        planted.a_clock_set_back_puts_the_look_off, {"P4"}, "a wrong clock"
    ),
    "an endless chunk in company goes free": Bug(
        planted.an_endless_chunk_in_company_goes_free, {"I11"}, "nothing but the work"
    ),
    "what is passed over goes free": Bug(planted.what_is_passed_over_goes_free, {"I11"}),
    "a late start is not waited for": Bug(planted.a_late_start_is_not_waited_for, {"I1"}, "old looks"),
}


@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_found(
    name: str, monkeypatch: pytest.MonkeyPatch, record_property: Callable[[str, object], None]
) -> None:
    bug = BUGS[name]
    bug.plant(monkeypatch)
    with listening() as listener:
        for seed in range(BUDGET):
            violation = play(seed, listener, FOCI.get(bug.focus)).violation
            if violation:
                record_property("episodes", seed + 1)
                assert violation.split(":")[0] in bug.breaks, violation
                return
    raise AssertionError(f"{BUDGET} episodes did not find it")
