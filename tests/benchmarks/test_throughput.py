"""How fast a full topic is read: the whole ingest path of one worker, in turns with a stock Faust agent."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest
from full_topic import Topic, measured

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(1_800)]
TURNS = 3
STOCK_SHARE = 0.2  # the reference is slower: a fifth of the events is as long a run


def test_ingest_path_beside_a_stock_agent(full: Topic, tmp_path: Path) -> None:
    """Fetch, decode, validate, fold, dedupe, commit, lake; nothing lost on the way, and how fast it was."""
    ours, stock = [], []
    for n in range(TURNS):
        ours += measured(("ingest_path.py", full.kafka, full.name, tmp_path / f"ours{n}"))
        some = int(full.events * STOCK_SHARE)
        stock += measured(("stock_faust.py", full.kafka, full.name, tmp_path / f"stock{n}", some))
    for run in ours:
        assert run["stored"] + run["duplicates"] + run["rejected"] == full.events
    print(f"\n{full.events:,} events of {full.value_bytes:.0f} bytes, {TURNS} turns each, median [all]")
    rates = {}
    for name, runs in (("nextclick ingest path", ours), ("stock Faust agent", stock)):
        per_s = [run["events"] / run["seconds"] for run in runs]
        cpu_us = [run["cpu_s"] / run["events"] * 1e6 for run in runs]
        rates[name] = statistics.median(per_s)
        every = ", ".join(f"{rate:,.0f}" for rate in per_s)
        print(f"  {name}: {rates[name]:,.0f} events/s [{every}], {statistics.median(cpu_us):.1f} CPU µs an event")
    for run in ours:
        threads = ", ".join(f"{k} {s / run['events'] * 1e6:.1f}" for k, s in sorted(run["threads_s"].items()))
        print(f"  CPU µs an event by thread: {threads}; {run['events_a_poll']:,} events a poll, {run['rss_mb']} MB")
    fast, slow = rates.values()
    print(f"  ratio {fast / slow:.1f}")


def test_two_workers_beside_one(full: Topic, tmp_path: Path) -> None:
    """What an event costs one worker, and each of two that share the topic and one lake."""
    print(f"\n{full.events:,} events, {TURNS} turns each, CPU µs an event by turn")
    for workers in (1, 2):
        cost = []
        for n in range(TURNS):
            shared = tmp_path / f"{workers}-{n}"
            one = ("ingest_path.py", full.kafka, full.name, shared, shared.name, 8 // workers)
            runs = measured(*[one] * workers)
            assert sum(run["stored"] + run["duplicates"] + run["rejected"] for run in runs) == full.events
            cost.append(sum(run["cpu_s"] for run in runs) / full.events * 1e6)
        print(f"  {workers}: {statistics.median(cost):.1f} [{', '.join(f'{us:.1f}' for us in cost)}]")
