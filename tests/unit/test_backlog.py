from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from batchscribe.core.keys import digest
from batchscribe.core.objects import ObjectInfo
from batchscribe.core.scan import backlog
from batchscribe.core.scan.backlog import (
    Backlog,
    LiveLock,
    PastAttempts,
    ScanRules,
    SessionScan,
    scan_sessions,
    summarise,
)
from batchscribe.core.scan.folders import Tagged, merge_listings
from batchscribe.errors import StoreUnavailableError
from support.stores import NOW, in_order, pending, row


def scan(
    *rows: ObjectInfo | str, output: list[ObjectInfo] | None = None, **rules: Any
) -> dict[str, SessionScan]:
    source = in_order(each if isinstance(each, ObjectInfo) else row(each) for each in rows)
    listing = merge_listings(source, in_order(output) if output is not None else None)
    return {found.session: found for found in scan_sessions(listing, ScanRules(now=NOW, **rules))}


def test_an_empty_listing_is_an_empty_backlog() -> None:
    assert summarise(scan_sessions(iter(()), ScanRules(now=NOW))) == Backlog()


def test_chunks_of_one_folder_are_one_session_and_other_files_their_own() -> None:
    found = scan(
        "s/chunk-002.webm", "s/chunk-001.webm", "s/talk.mp3", "chunk-001.ogg", "notes.txt", "s/x.json"
    )
    assert set(found) == {"s/", "s/talk.mp3", "./"}
    assert [chunk.number for chunk in found["s/"].pending] == [1, 2]
    assert found["s/talk.mp3"].pending[0].number is None
    assert pending(found.values()) == {
        "chunk-001.ogg": "transcription-chunk-001.json",
        "s/chunk-001.webm": "s/transcription-chunk-001.json",
        "s/chunk-002.webm": "s/transcription-chunk-002.json",
        "s/talk.mp3": "s/transcription-talk.json",
    }


def test_chunks_are_in_the_order_of_their_numbers() -> None:
    found = scan(*(f"s/chunk-{number}.webm" for number in (10, 9, 1, 100)))
    assert [chunk.number for chunk in found["s/"].pending] == [1, 9, 10, 100]


def test_sessions_nest_and_interleave() -> None:
    found = scan(
        "a/chunk-001.webm",
        "a/b/chunk-001.webm",
        "a/b/transcription-chunk-001.json",
        "a/chunk-002.webm",
        "a/d/chunk-003.webm",
        "a/layers/layer-0-raw-transcription/chunk-002.json",
        "a/zz/chunk-004.webm",
        "a/transcription-chunk-003.json",
    )
    assert {session: (each.done, len(each.pending)) for session, each in found.items()} == {
        "a/": (1, 1),
        "a/b/": (1, 0),
        "a/d/": (0, 1),
        "a/zz/": (0, 1),
    }


def test_both_places_count_and_mix_within_a_session() -> None:
    found = scan(
        *(f"s/chunk-00{number}.webm" for number in range(1, 5)),
        "s/layers/layer-0-raw-transcription/chunk-001.json",
        "s/transcription-chunk-002.json",
        "s/transcription-chunk-003.json",
        "s/layers/layer-0-raw-transcription/chunk-003.json",
    )
    assert found["s/"].done == 3
    assert list(pending(found.values())) == ["s/chunk-004.webm"]
    assert not found["s/"].complete


def test_audio_among_the_transcripts_of_the_folder_above() -> None:
    layer = "s/layers/layer-0-raw-transcription/"
    found = scan("s/z.mp3", f"{layer}a.mp3", f"{layer}z.json", f"{layer}z.mp3", f"{layer}{layer[2:]}z.json")
    assert {session: each.done for session, each in found.items()} == {
        f"{layer}a.mp3": 0,
        f"{layer}z.mp3": 1,
        "s/z.mp3": 1,
    }


def test_a_transcript_of_a_neighbouring_folder_says_nothing() -> None:
    found = scan(
        "s/chunk-001.webm", "transcription-chunk-001.json", "s/t/transcription-chunk-001.json", "st/x.mp3"
    )
    assert found["s/"].done == 0


def test_empty_audio_is_neither_pending_nor_done() -> None:
    found = scan(row("s/chunk-001.webm", size=0), "s/transcription-chunk-001.json", row("a.mp3", size=0))
    assert (found["s/"].empty, found["s/"].done, found["s/"].pending) == (1, 0, ())
    assert found["s/"].complete
    assert found["a.mp3"].empty == 1


def test_young_chunks_wait() -> None:
    found = scan(row("a.mp3", hours_old=0.05), row("b.mp3", hours_old=0.1), min_age=timedelta(minutes=5))
    assert (len(found["a.mp3"].waiting), len(found["b.mp3"].pending)) == (1, 1)
    assert not found["a.mp3"].complete


def test_a_date_in_the_future_is_a_wrong_clock_and_not_a_wait_until_then() -> None:
    found = scan(row("a.mp3", hours_old=-0.05), row("b.mp3", hours_old=-9000))
    assert (len(found["a.mp3"].waiting), len(found["b.mp3"].pending)) == (1, 1)


def test_by_hand_no_age_counts() -> None:
    assert pending(scan(row("a.mp3", hours_old=0), min_age=timedelta(0)).values())


def recording(*minutes_old: float, session: str = "s") -> list[ObjectInfo]:
    """Chunks 1, 2, ... of a session, uploaded so many minutes ago."""
    return [
        row(f"{session}/chunk-{number:03}.webm", hours_old=minutes / 60)
        for number, minutes in enumerate(minutes_old, start=1)
    ]


def held(rows: list[ObjectInfo], session: str = "s/", **rules: Any) -> list[int | None]:
    """The numbers of the chunks that wait."""
    return [chunk.number for chunk in scan(*rows, **rules)[session].waiting]


@pytest.mark.parametrize(
    ("minutes_old", "waits"),
    [
        ((30, 20, 10), [3]),
        ((35, 25, 15), [3]),
        ((39.9, 29.9, 19.9), [3]),
        ((40.1, 30.1, 20.1), []),
        ((200, 100, 10.1), [3]),
        ((30, 10.1, 10), []),
        ((30, 20, 4), [3]),
        ((6,), []),
        ((4,), [1]),
        ((10, 20), []),
        ((-20, -40), []),
    ],
    ids=str,
)
def test_the_last_chunk_waits_for_the_one_after_it_until_it_is_quiet(
    minutes_old: tuple[float, ...], waits: list[int]
) -> None:
    assert held(recording(*minutes_old)) == waits


def test_a_neighbour_that_came_lets_the_chunk_before_it_go() -> None:
    rows = recording(30, 20, 10)
    assert held([*rows, row("s/chunk-004.webm", hours_old=0.01)]) == [4]
    assert held([*rows, row("s/chunk-004.webm", size=0, hours_old=0.2)]) == []


def test_no_chunk_waits_for_its_neighbour_longer_than_the_longest_wait() -> None:
    rows = recording(390, 250)
    assert held(rows) == [2]
    assert held(rows, overdue=NOW - timedelta(minutes=251)) == [2]
    assert held(rows, overdue=NOW - timedelta(minutes=250)) == []


def test_a_session_that_is_taken_up_again_another_day_is_not_waited_for() -> None:
    assert held(recording(3000, 600)) == []


def test_a_person_who_asks_waits_for_no_neighbour() -> None:
    assert held(recording(30, 20, 10), min_age=timedelta(0)) == []


def test_only_sessions_of_chunks_have_neighbours_each_its_own() -> None:
    rows = [row("s/talk.mp3", hours_old=0.5), row("s/talk-2.mp3", hours_old=0.2)]
    rows += recording(30, 20, 10, session="s/a") + recording(90, 80, 70, session="s")
    found = scan(*rows)
    assert {name for name, each in found.items() if each.waiting} == {"s/a/"}
    assert not found["s/a/"].complete


def test_the_last_chunk_waits_whatever_became_of_those_before_it() -> None:
    rows = recording(30, 20, 10)
    done = [row(f"s/transcription-chunk-00{number}.json", hours_old=0.1) for number in (1, 2, 3)]
    assert held([*rows, *done[:2]]) == [3]
    assert scan(*rows, *done)["s/"].complete


def test_two_files_of_the_last_number_wait_both() -> None:
    rows = [*recording(30, 19), row("s/chunk-2.ogg", hours_old=19 / 60)]
    assert held(rows) == [2, 2]
    assert held([*rows, row("s/chunk-10.ogg", hours_old=0.3)]) == []


def test_a_live_lock_holds_its_session_back() -> None:
    lock = LiveLock("s1", NOW)
    found = scan("u/s1/chunk-001.webm", "u/s12/chunk-001.webm", "u/s1/done.mp3", live=lock)
    assert [session for session, each in found.items() if each.live] == ["u/s1/", "u/s1/done.mp3"]
    assert list(pending(found.values())) == ["u/s12/chunk-001.webm"]


def test_a_lock_that_names_no_session_holds_all_back() -> None:
    found = scan("a.mp3", "s/chunk-001.webm", live=LiveLock(None, NOW))
    assert pending(found.values()) == {}
    assert all(each.live and not each.complete for each in found.values())


def test_newer_audio_is_stale_and_still_done() -> None:
    found = scan(row("a.mp3", hours_old=1), row("transcription-a.json", hours_old=2))
    assert (found["a.mp3"].stale, found["a.mp3"].done) == (("a.mp3",), 1)
    found = scan(
        row("a.mp3", hours_old=1),
        row("transcription-a.json", hours_old=2),
        row("transcription-a.mp3.json", hours_old=0.5),
    )
    assert found["a.mp3"].stale == ()


def test_control_objects_are_passed_over() -> None:
    found = scan("a.mp3", "_batchscribe/x.mp3", "_batchscribe/superseded/1/transcription-a.json")
    assert list(pending(found.values())) == ["a.mp3"]


def test_two_stores_are_one_backlog() -> None:
    found = scan(
        "a.mp3",
        "b.mp3",
        "c.mp3",
        "transcription-a.json",
        output=[row("transcription-b.json"), row("d.mp3"), row("c/transcription-c.json")],
    )
    assert list(pending(found.values())) == ["c.mp3"]
    assert set(found) == {"a.mp3", "b.mp3", "c.mp3"}


# Files that differ by extension alone.


def test_of_one_stem_the_first_has_the_plain_name() -> None:
    assert pending(scan("a.mp3", "a.wav", "a.MP3").values()) == {
        "a.MP3": "transcription-a.json",
        "a.mp3": "transcription-a.mp3.json",
        "a.wav": "transcription-a.wav.json",
    }


def test_chunks_of_one_number_are_both_of_the_session() -> None:
    found = scan("s/chunk-001.mp3", "s/chunk-001.webm", "s/transcription-chunk-001.json")
    assert (found["s/"].done, [chunk.key for chunk in found["s/"].pending]) == (1, ["s/chunk-001.webm"])
    assert found["s/"].pending[0].transcript == "s/transcription-chunk-001.webm.json"


def test_the_full_name_always_speaks_for_its_file() -> None:
    found = scan("a.mp3", "a.wav", "transcription-a.mp3.json")
    assert pending(found.values()) == {"a.wav": "transcription-a.wav.json"}


@pytest.mark.parametrize(
    ("owner", "left"),
    [
        ("a.mp3", {"a.wav": "transcription-a.wav.json"}),
        ("a.wav", {"a.mp3": "transcription-a.mp3.json"}),
        (None, {"a.wav": "transcription-a.wav.json"}),
        ("gone.ogg", {"a.mp3": "transcription-a.mp3.json", "a.wav": "transcription-a.wav.json"}),
    ],
)
def test_the_plain_name_speaks_for_the_file_named_inside(owner: str | None, left: dict[str, str]) -> None:
    found = scan("a.mp3", "a.wav", "transcription-a.json", owner=lambda _key: owner)
    assert pending(found.values()) == left


def test_the_owner_is_asked_only_where_there_is_a_choice() -> None:
    asked: list[str] = []

    def owner(key: str) -> None:
        asked.append(key)

    scan(
        "a.mp3",
        "transcription-a.json",
        "s/b.mp3",
        "s/b.wav",
        "s/transcription-b.json",
        "c.mp3",
        "c.ogg",
        owner=owner,
    )
    assert asked == ["s/transcription-b.json"]


def test_an_empty_file_does_not_take_the_plain_name() -> None:
    found = scan(row("a.mp3", size=0), "a.wav", "transcription-a.json")
    assert found["a.wav"].done == 1
    assert pending(scan(row("a.mp3", size=0), "a.wav").values()) == {"a.wav": "transcription-a.json"}


def test_a_name_inside_a_name() -> None:
    """transcription-a.mp3.json is the full name for a.mp3: a.mp3.wav must never take it."""
    found = scan("a.mp3.wav")
    assert pending(found.values()) == {"a.mp3.wav": "transcription-a.mp3.wav.json"}
    found = scan("a.mp3", "a.mp3.wav", "transcription-a.mp3.json")
    assert pending(found.values()) == {"a.mp3.wav": "transcription-a.mp3.wav.json"}


# What earlier attempts left behind.


def troubled(key: str, **values: Any) -> dict[str, tuple[PastAttempts, ...]]:
    return {digest(key): (PastAttempts(etag="old"), PastAttempts(**({"etag": "e"} | values)))}


def test_quarantine_holds_for_that_etag_only() -> None:
    trouble = troubled("a.mp3", quarantined=True)
    assert scan("a.mp3", trouble=trouble)["a.mp3"].quarantined == 1
    assert scan("a.mp3", trouble=trouble)["a.mp3"].complete
    assert list(pending(scan(row("a.mp3", etag="new"), trouble=trouble).values())) == ["a.mp3"]


def test_a_transcript_wins_over_quarantine() -> None:
    found = scan("a.mp3", "transcription-a.json", trouble=troubled("a.mp3", quarantined=True))
    assert (found["a.mp3"].done, found["a.mp3"].quarantined) == (1, 0)


@pytest.mark.parametrize("values", [{"failures": 2}, {"unavailable": True}])
def test_a_troubled_chunk_is_pending_and_starts_nothing(values: dict[str, Any]) -> None:
    found = scan("a.mp3", trouble=troubled("a.mp3", **values))
    (chunk,) = found["a.mp3"].pending
    assert (chunk.previously_failed, chunk.failures) == (True, values.get("failures", 0))
    total = summarise(found.values())
    assert (total.pending, total.troubled, total.triggering, total.oldest) == (1, 1, 0, None)
    assert total.candidates == (chunk,)


# The sums.


def test_the_sums() -> None:
    found = scan(
        row("a/chunk-001.webm", hours_old=5, size=7),
        row("a/chunk-002.webm", hours_old=6, size=8),
        row("b.mp3", hours_old=9),
        "transcription-b.json",
        row("c.mp3", size=0),
        row("d.mp3", hours_old=0),
        row("e.mp3", hours_old=100),
        trouble=troubled("e.mp3", failures=1) | troubled("a/chunk-002.webm", quarantined=True),
    )
    total = summarise(found.values(), lambda: ("odd",))
    assert total == Backlog(
        sessions=5,
        pending=2,
        pending_bytes=7 + 40_000,
        troubled=1,
        waiting=1,
        done=1,
        quarantined=1,
        oldest_retry=found["e.mp3"].pending[0].modified,
        empty=1,
        oldest=NOW - timedelta(hours=5),
        candidates=(*found["a/"].pending, *found["e.mp3"].pending),
        odd_keys=("odd",),
    )


def test_the_session_that_waits_longest_comes_first_and_whole() -> None:
    found = scan(
        row("new/chunk-001.webm", hours_old=2),
        row("old/chunk-001.webm", hours_old=1),
        row("old/chunk-002.webm", hours_old=3),
        row("older.mp3", hours_old=4),
    )
    keys = [chunk.key for chunk in summarise(found.values()).candidates]
    assert keys == ["older.mp3", "old/chunk-001.webm", "old/chunk-002.webm", "new/chunk-001.webm"]


def test_archived_chunks_however_old_do_not_crowd_out_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backlog, "MAX_CANDIDATES", 3)
    frozen = [row(f"s/chunk-{number:03}.webm", hours_old=1000) for number in range(50)]
    trouble = {digest(each.key): (PastAttempts(etag="e", unavailable=True),) for each in frozen}
    recent = (row("s/chunk-900.webm", hours_old=1), row("t.mp3", hours_old=2))
    found = scan(*frozen, *recent, trouble=trouble, overdue=NOW - timedelta(minutes=30))
    keys = [chunk.key for chunk in summarise(found.values()).candidates]
    assert keys == ["t.mp3", "s/chunk-900.webm", "s/chunk-000.webm"]


def test_candidates_are_bounded_and_the_sums_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backlog, "MAX_CANDIDATES", 10)
    found = scan(*(row(f"s{n:03}/chunk-{m}.mp3", hours_old=n + 1) for n in range(100) for m in range(3)))
    total = summarise(found.values())
    assert total.pending == 300
    assert [chunk.session for chunk in total.candidates] == ["s099/"] * 3 + ["s098/"] * 3 + ["s097/"] * 3 + [
        "s096/"
    ]


def test_only_open_folders_are_held() -> None:
    """A session is out as soon as its folder has passed, long before the listing ends."""
    passed: list[str] = []

    def listing() -> Iterator[Tagged]:
        for number in range(1000):
            passed.append(f"s{number:04}/chunk-001.webm")
            yield from merge_listings([row(passed[-1])])

    first = next(scan_sessions(listing(), ScanRules(now=NOW)))
    assert first.session == "s0000/"
    assert len(passed) == 2


def test_a_listing_that_breaks_is_an_error_and_no_backlog() -> None:
    def listing() -> Iterator[Tagged]:
        yield from merge_listings([row("a.mp3"), row("b/c.mp3")])
        raise StoreUnavailableError("the connection was reset")

    with pytest.raises(StoreUnavailableError):
        summarise(scan_sessions(listing(), ScanRules(now=NOW)))
