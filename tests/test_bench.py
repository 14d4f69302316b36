"""Latency is counted from when an event was due, not from when it went out."""

from __future__ import annotations

import doctest
import json
from pathlib import Path
from types import ModuleType

import pytest

from deploy import bench, cli, probe, timings
from deploy.probe import USERS, Ledger
from deploy.timings import Plan, Turn
from streams import stages


@pytest.mark.parametrize("module", [probe, timings, stages])
def test_examples_in_the_modules_hold(module: ModuleType) -> None:
    """Their doctests, which no other run looks at."""
    assert doctest.testmod(module).failed == 0


def test_late_generator_counts_against_the_latency() -> None:
    """A stall of the one that sends is waiting time of those who would have been served: no coordinated omission."""
    ledger = Ledger(rate=100, start_s=10.0)
    for i in range(10):
        ledger.answer(i, 12.0)  # all sent and answered after a stall of two seconds
    assert [round(ms) for ms in ledger.latencies_ms] == [2_000 - 10 * i for i in range(10)]


def test_one_prediction_answers_all_events_of_its_batch() -> None:
    """A session is scored once a batch: its earlier events are answered by the same prediction, once."""
    ledger = Ledger(rate=1, start_s=0.0)
    ledger.answer(USERS, USERS + 1.0)
    ledger.answer(USERS, USERS + 2.0)  # a repetition after a crash
    assert len(ledger.latencies_ms) == 2


def test_behind_counts_what_waits_for_longer_than_a_second() -> None:
    """Of 50 events of a turn of five seconds, all but those of the last second should be answered."""
    ledger = Ledger(rate=10, start_s=0.0)
    for i in range(20):
        ledger.answer(i, 3.0)
    assert ledger.behind(50, 5.0) == 20


def turn(who: str, latencies_ms: list[float], behind: int = 0) -> Turn:
    """One turn at 10 events a second."""
    made = Turn(who=who, rate=10, sent=len(latencies_ms), answered=len(latencies_ms), behind=behind)
    made.latencies_ms, made.busy_s = latencies_ms, {"predict": 3.0, "fetch": 9.0}
    return made


def test_rate_that_was_not_sustained_names_the_stage() -> None:
    """Where events pile up it is said, and what took the time."""
    plan = Plan(rates=(10,), rounds=1)
    good = timings.result([turn("worker", [4.0, 6.0]), turn("echo", [2.0, 3.0])], plan)["rates"][0]
    assert (good["sustained"], good["ratio"]) == (True, {"p50_ms": 2.0, "p99_ms": 2.0})
    bad = timings.result([turn("worker", [4.0] * 20, behind=9), turn("echo", [2.0])], plan)["rates"][0]
    assert (bad["sustained"], bad["why"]) == (False, "most of the time went into predict (3.0 s)")


def test_mistake_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """A turn without a length."""
    with pytest.raises(SystemExit):
        cli.main(["bench", "latency", "--for", "soon"])
    assert "--for 'soon' cannot be used: write a duration" in capsys.readouterr().err


def test_version_is_lent_with_its_vectors_and_nothing_is_written_back(tmp_path: Path) -> None:
    """The bench's worker adds vectors to a folder of its own; a version that is not there is said before it starts."""
    shared, own = tmp_path / "shared", tmp_path / "own"
    for name in ("versions/v1/digest", "encoders/e/config.json", "vectors/e/w-1.parquet"):
        (shared / name).parent.mkdir(parents=True, exist_ok=True)
        (shared / name).write_text(name)
    bench.lend(shared, own, "v1")
    (own / "vectors" / "e" / "bench-1.parquet").write_text("fresh")
    assert (own / "versions/v1/digest").read_text() == "versions/v1/digest"
    assert (own / "encoders/e/config.json").read_text() == "encoders/e/config.json"
    assert (own / "vectors/e/w-1.parquet").read_text() == "vectors/e/w-1.parquet"
    assert [path.name for path in (shared / "vectors" / "e").iterdir()] == ["w-1.parquet"]
    with pytest.raises(FileNotFoundError, match="no version v2"):
        bench.lend(shared, own, "v2")


@pytest.mark.kafka
def test_probe_on_a_real_kafka(kafka: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A worker of its own answers every event that was sent, and so does the echo; topics are gone afterwards."""
    with pytest.raises(SystemExit):
        cli.main(["bench", "latency", "--kafka", kafka, "--rate", "100", "--for", "2s", "--rounds", "1", "--json",
                  "--set", "encoder=none"])  # fmt: skip
    told = json.loads(capsys.readouterr().out)
    assert [(t["sent"], t["answered"]) for t in told["turns"]] == [(200, 200), (200, 200)]
