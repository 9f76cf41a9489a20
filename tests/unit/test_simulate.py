"""`simulate`: traces from a file, the source or the ledger; the JSON contract, the text and the plot."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from batchscribe.cli.main import cli
from batchscribe.core.decide.arrivals import Arrival, parse_arrivals
from batchscribe.core.decide.observation import Policy, PolicyName
from batchscribe.core.decide.packing import Priors
from batchscribe.core.decide.simulation import simulate as simulate_policies
from batchscribe.core.decide.simulation_text import list_points
from batchscribe.core.run.report import QueueSample
from batchscribe.errors import MisconfiguredError
from batchscribe.ledger import Ledger
from batchscribe.ledger.ledger import FILE_NAME
from support import values
from support.values import NOW, run

OFFER = ("--rate", "3.6", "--setup-seconds", "120", "--speed", "10")
"""A tenth of a cent for each second."""
TRACE = """arrived,audio_seconds
2026-11-23T12:20:00Z,600
2026-11-23T12:10:00Z,600
2026-11-23T14:30:00+01:00,600
"""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "trace.csv").write_text(TRACE)
    return tmp_path


def simulate(*words: str) -> Result:
    return CliRunner().invoke(cli, ["simulate", *words], catch_exceptions=False)


def simulated(*words: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(simulate("--json", *words).stdout)
    return document


def policy(document: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = [each for each in document["policies"] if each["name"] == name]
    return dict(found)


def test_the_document_has_every_policy() -> None:
    document = simulated("--arrivals", "trace.csv", *OFFER, "--max-wait-hours", "24")
    assert [each["name"] for each in document["policies"]] == list(PolicyName)
    for each in document["policies"]:
        assert {"dollars", "starts", "late", "ratio"} < each.keys()
        assert set(each["wait_hours"]) == {"mean", "p95", "max"}
    now = policy(document, "now")
    # At 13:00 two chunks of 60 s of work after 120 s of set-up, at 14:00 the third one
    assert (now["dollars"], now["starts"], now["late"]) == (0.42, 2, 0)
    assert now["wait_hours"]["max"] == pytest.approx((50 * 60 + 180) / 3600, abs=1e-6)
    deadline = policy(document, "deadline")
    assert (deadline["dollars"], deadline["starts"], deadline["ratio"]) == (0.3, 1, 1.0)
    assert (document["chunks"], document["audio_hours"]) == (3, 0.5)
    (offer,) = document["offers"]
    assert offer["policies"] == document["policies"]
    assert (offer["rate"], offer["speed"], document["max_wait_hours"]) == (3.6, 10.0, 24.0)


def test_settings_are_what_the_options_leave_open(home: Path) -> None:
    (home / ".env").write_text(
        "GPU_HOURLY_COST=7.2\nBATCH_POLICY=now\nBATCH_MAX_WAIT_HOURS=5\nBATCH_SCHEDULER_CHECK_HOURS=0.5\n"
    )
    document = simulated("--arrivals", "trace.csv")
    (offer,) = document["offers"]
    assert (offer["rate"], offer["rate_source"]) == (7.2, "GPU_HOURLY_COST")
    assert (document["present"], document["max_wait_hours"], document["check_hours"]) == ("now", 5.0, 0.5)


def test_measured_speed_and_set_up_are_the_default() -> None:
    document = simulated("--arrivals", "trace.csv", "--rate", "1")
    assert document["offers"][0]["speed"] > 1
    assert document["offers"][0]["release_seconds"] > 0


def test_each_type_of_the_settings_is_an_offer(home: Path) -> None:
    (home / ".env").write_text(
        "GPU_PROVIDER=ec2\nGPU_INSTANCE_ID=i-0123456789abcdef0\nGPU_INSTANCE_TYPE=g6.xlarge\n"
        "GPU_INSTANCE_TYPES=g4dn.xlarge,g6.xlarge\nAWS_REGION=us-east-2\n"
    )
    with Ledger(home / ".batchscribe" / FILE_NAME) as ledger:
        ledger.learn(
            run="r",
            engine="faster-whisper",
            model="large-v3-turbo",
            instance_type="g4dn.xlarge",
            at=NOW,
            measured=Priors(speed=40.0, setup_seconds=90.0, release_seconds=30.0),
        )
    document = simulated("--arrivals", "trace.csv")
    first, second = document["offers"]
    assert document["policies"] == first["policies"]
    assert (first["instance_type"], first["rate"], first["speed"]) == ("g6.xlarge", 0.8048, 20.0)
    assert (second["instance_type"], second["rate"], second["speed"]) == ("g4dn.xlarge", 0.526, 40.0)
    lines = simulate("--arrivals", "trace.csv").stdout.splitlines()
    assert [line.split()[:2] for line in lines[6:9]] == [
        ["Type", "$/h"],
        ["g6.xlarge", "0.8048"],
        ["g4dn.xlarge", "0.5260"],
    ]
    assert len(simulated("--arrivals", "trace.csv", "--rate", "1")["offers"]) == 1


def test_a_budget_does_not_stop_a_simulation(home: Path) -> None:
    (home / ".env").write_text("BATCH_MAX_DOLLARS_PER_DAY=0.01\n")
    assert policy(simulated("--arrivals", "trace.csv", *OFFER), "now")["starts"] == 2


def test_the_lines_for_env_come_last_with_what_they_save(home: Path) -> None:
    (home / ".env").write_text("BATCH_POLICY=now\n")
    done = simulate("--arrivals", "trace.csv", *OFFER)
    lines = done.stdout.splitlines()
    assert lines[0].split()[:4] == ["Policy", "Cost", "$/audio", "hour"]
    assert lines[-2].startswith("BATCH_POLICY=")
    assert lines[-1] == "BATCH_MAX_WAIT_HOURS=24"
    assert "$0.30, with no chunk late: $0.12 less than with the present BATCH_POLICY=now" in done.stdout
    now, least = (policy(simulated("--arrivals", "trace.csv", *OFFER), name) for name in ("now", "deadline"))
    waits = f"mean wait {now['wait_hours']['mean']:.2f} h -> {least['wait_hours']['mean']:.2f} h. Put"
    assert waits in done.stdout
    document = simulated("--arrivals", "trace.csv", *OFFER)
    assert (document["env"]["BATCH_MAX_WAIT_HOURS"], document["saved"]) == ("24", 0.12)


def test_the_present_settings_may_be_the_cheapest(home: Path) -> None:
    (home / ".env").write_text("BATCH_POLICY=deadline\n")
    done = simulate("--arrivals", "trace.csv", *OFFER)
    assert "The present policy has the lowest bill, with no chunk late" in done.stdout
    assert done.stdout.splitlines()[-2:] == ["BATCH_POLICY=deadline", "BATCH_MAX_WAIT_HOURS=24"]


def test_late_chunks_are_named(home: Path) -> None:
    (home / ".env").write_text("BATCH_POLICY=now\nBATCH_MAX_WAIT_HOURS=0.5\n")
    done = simulate("--arrivals", "trace.csv", *OFFER)
    assert "The present policy has the lowest bill, with 3 chunks late" in done.stdout
    assert "late because BATCH_SCHEDULER_CHECK_HOURS=1 is too long for a longest wait of 0.5 h" in done.stdout


def test_bills_that_hardly_differ_are_no_reason_for_a_change(home: Path) -> None:
    (home / ".env").write_text("BATCH_POLICY=deadline\n")
    # All bills are below a cent: the shortest mean wait is the best.
    done = simulate("--arrivals", "trace.csv", "--rate", "0.01", "--setup-seconds", "120", "--speed", "10")
    assert "costs as much as the present deadline (" in done.stdout
    assert done.stdout.splitlines()[-2] == "BATCH_POLICY=balanced"
    (home / ".env").write_text("BATCH_POLICY=now\nBATCH_SCHEDULER_CHECK_HOURS=0.25\n")
    done = simulate("--arrivals", "trace.csv", "--rate", "0.01", "--setup-seconds", "120", "--speed", "10")
    assert "No lower bill is worth a change, with no chunk late. Its lines in .env:" in done.stdout


def test_a_rate_that_is_no_number_is_called_one() -> None:
    assert "Invalid value for '--rate': 'abc' is not a number." in simulate("--rate", "abc").stderr


def test_a_rate_without_an_instance_means_a_gpu_and_what_is_assumed_is_printed(home: Path) -> None:
    offer = simulated("--arrivals", "trace.csv", "--rate", "0.526")["offers"][0]
    assert (offer["speed"], offer["setup_seconds"]) == (Priors().speed, Priors().setup_seconds)
    done = simulate("--arrivals", "trace.csv", "--rate", "0.526", "--speed", "73.123456")
    assert "Set-up of a GPU in the cloud: assumed, not measured" in done.stdout
    assert "73.1 x speed" in done.stdout
    assert "Set-up and speed of this machine: assumed" in simulate("--arrivals", "trace.csv").stdout
    (home / ".env").write_text("GPU_HOURLY_COST=0.2\n")
    assert "Set-up and speed of this machine: assumed" in simulate("--arrivals", "trace.csv").stdout
    (home / ".env").write_text("GPU_INSTANCE_TYPE=g4dn.xlarge\n")
    assert simulated("--arrivals", "trace.csv")["offers"][0]["speed"] == Priors().speed
    assert "Set-up and speed of g4dn.xlarge: assumed" in simulate("--arrivals", "trace.csv").stdout


def test_the_hours_and_the_other_ratio_are_named(home: Path) -> None:
    (home / ".env").write_text("BATCH_HOURS=22:00-06:00\n")
    lines = simulate("--arrivals", "trace.csv", *OFFER).stdout.splitlines()
    assert [line.endswith(" *") for line in lines[1:5]] == [row == "balanced" for row in PolicyName]
    assert any(line.startswith("* to the least sum of the bill and $0.05") for line in lines)
    assert "Starts only within BATCH_HOURS (22:00-06:00), unless a chunk would wait too long" in lines


def test_policies_with_one_result_are_one_point() -> None:
    found = simulate_policies([Arrival(NOW, 600.0)], Policy(threshold=1), [values.OFFER])
    points = [name for name, _wait, _dollars in list_points(found.policies)]
    assert points == ["threshold, now", "deadline", "balanced"]


def test_the_table_fits_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert max(map(len, simulate("--arrivals", "trace.csv", *OFFER).stdout.splitlines())) <= 80


def test_a_trace_without_arrivals_is_no_error(home: Path) -> None:
    (home / "trace.csv").write_text("arrived,audio_seconds\n")
    done = simulate("--arrivals", "trace.csv", *OFFER)
    assert (done.exit_code, done.stdout) == (0, "Nothing to simulate: no audio in trace.csv.\n")
    document = simulated("--arrivals", "trace.csv", *OFFER)
    assert {each["dollars"] for each in document["policies"]} == {0.0}
    assert {each["ratio"] for each in document["policies"]} == {1.0}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "trace has no column arrived and no audio_seconds"),
        ("when,audio_seconds\n", "trace has no column arrived: its first line must be arrived,audio_seconds"),
        ("arrived,audio_seconds\nyesterday,5\n", "line 2 of trace: arrived is 'yesterday', not an ISO time"),
        ("arrived,audio_seconds\n2026-11-23,5\n2026-11-24,x\n", "line 3 of trace: audio_seconds is 'x'"),
        (
            "arrived,audio_seconds\n2026-11-23,0\n",
            "line 2 of trace: audio_seconds is '0', not a number above 0",
        ),
        ("arrived,audio_seconds\n2026-11-23,12,5\n", "line 2 of trace: it has more values than the header"),
        ("arrived,audio_seconds\n2026-11-23,inf\n", "audio_seconds is 'inf'"),
        ("arrived,audio_seconds\n2026-11-23,4e6\n", "audio_seconds is '4e6', not a number above 0, up to 36"),
        ("arrived,audio_seconds\n9999-11-23,5\n", "arrived is '9999-11-23', not an ISO time"),
        ("arrived,audio_seconds\n2026-11-23,nan\n", "audio_seconds is 'nan'"),
        ("arrived,audio_seconds\n2026-11-23\n", "line 2 of trace: audio_seconds is None"),
        ("arrived,audio_seconds\n0001-01-01T00:00:00+05:00,5\n", "line 2 of trace: arrived is '0001"),
    ],
)
def test_a_bad_file_is_refused_with_the_line_and_the_fix(text: str, message: str) -> None:
    with pytest.raises(MisconfiguredError, match="nothing was simulated") as refused:
        parse_arrivals(text.splitlines(keepends=True), "trace")
    assert message in str(refused.value)


def test_a_file_that_is_no_text_is_refused(home: Path) -> None:
    (home / "trace.csv").write_bytes(b"arrived,audio_seconds\n\xff\xfe\n")
    with pytest.raises(MisconfiguredError, match=r"trace\.csv is not a CSV text in UTF-8"):
        simulate("--arrivals", "trace.csv", *OFFER)


def test_rows_are_sorted_and_other_columns_are_ignored() -> None:
    lines = ["name,audio_seconds,arrived\n", "a,2,2026-11-23T12:00:00\n", "\n", "b,1,2026-11-23T11:00Z\n"]
    found = parse_arrivals(lines, "trace")
    assert [(each.at, each.audio_seconds) for each in found] == [
        (datetime(2026, 11, 23, 11, tzinfo=UTC), 1.0),
        (datetime(2026, 11, 23, 12, tzinfo=UTC), 2.0),
    ]


def test_the_byte_order_mark_of_a_spreadsheet_is_no_part_of_the_header(home: Path) -> None:
    (home / "trace.csv").write_bytes(b"\xef\xbb\xbf" + TRACE.replace("\n", "\r\n").encode())
    assert simulated("--arrivals", "trace.csv", *OFFER)["chunks"] == 3


def test_without_a_file_the_time_stamps_of_the_source_are_replayed(home: Path) -> None:
    for number in (1, 2):
        file = home / "audio" / "walk" / f"chunk-00{number}.wav"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(bytes(32_000 * 60))
        os.utime(file, (NOW.timestamp(),) * 2)
    (home / "audio" / "walk" / "transcription-chunk-001.json").write_text('{"text": ""}')
    document = simulated("--source", str(home / "audio"), *OFFER)
    assert (document["chunks"], document["since"]) == (2, "2026-11-23T12:00:00Z")
    assert document["audio_hours"] * 60 == pytest.approx(2, abs=0.001)
    assert document["origin"] == f"the time stamps in {(home / 'audio').as_uri()}"


def test_the_ledger_stands_in_for_a_source_without_audio(home: Path) -> None:
    (home / "audio").mkdir()
    with Ledger(home / ".batchscribe" / FILE_NAME) as ledger:
        done = run(id="r", created=NOW + timedelta(hours=2), chunks_done=3, audio_seconds=1800.0)
        ledger.save_run(done, at=NOW)
        ledger.save_sample(
            QueueSample(
                at=NOW,
                pending=2,
                triggering=2,
                waiting=0,
                oldest=None,
                decision="below-threshold",
                sentence="",
            )
        )
    document = simulated("--source", str(home / "audio"), *OFFER)
    assert (document["origin"], document["chunks"], document["audio_hours"]) == ("the ledger", 3, 0.5)
    assert (document["since"], document["until"]) == ("2026-11-23T12:00:00Z", "2026-11-23T14:00:00Z")


def test_a_source_and_a_ledger_without_audio_are_no_error(home: Path) -> None:
    (home / "audio").mkdir()
    done = simulate("--source", str(home / "audio"), *OFFER)
    place = (home / "audio").as_uri()
    assert done.stdout == f"Nothing to simulate: no audio in {place}, and none in the ledger.\n"


@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_cost_is_drawn_against_wait(home: Path, suffix: str) -> None:
    simulate("--arrivals", "trace.csv", *OFFER, "--plot", f"plot{suffix}")
    drawn = (home / f"plot{suffix}").read_bytes()
    assert drawn.startswith(b"\x89PNG" if suffix == ".png" else b"<?xml")


def test_a_plot_that_cannot_be_drawn_is_refused_before_the_work(home: Path) -> None:
    (home / "trace.csv").write_text("damaged")
    with pytest.raises(MisconfiguredError, match=r"cannot draw into plot\.jpeg"):
        simulate("--arrivals", "trace.csv", *OFFER, "--plot", "plot.jpeg")


@pytest.mark.parametrize(
    "words",
    [
        ("--speed", "0"),
        ("--speed", "nan"),
        ("--rate", "-1"),
        ("--rate", "inf"),
        ("--setup-seconds", "-1"),
        ("--max-wait-hours", "0"),
    ],
)
def test_an_impossible_option_is_refused(words: tuple[str, str]) -> None:
    assert simulate("--arrivals", "trace.csv", *words).exit_code == 2
