"""What a turn of the bench came to: latencies, what was not sustained, and why; the worker beside the echo."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

BEHIND_SHARE = 0.01  # events that wait for too long when sending ends are too many from this share of a turn on
LATE_S = 0.1  # a generator later than this did not offer its rate
STAGES = {
    "fetch": "fetch: waiting for records", "fold": "fold: decode and sessions", "predict": "predict",
    "send": "send: encode and produce", "ack": "ack: waiting for the broker", "commit": "commit: DuckDB",
    "flush": "flush: the lake",
}  # fmt: skip


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What is measured: rates in events a second, each for `seconds` a turn, `rounds` turns of either."""

    rates: tuple[int, ...] = (200, 1_000, 3_000)
    seconds: float = 10.0
    rounds: int = 3
    model: str | None = None


class Turn(msgspec.Struct, kw_only=True):
    """One rate offered for a while to one of the two, and what came back."""

    who: str
    rate: int
    sent: int = 0
    answered: int = 0
    behind: int = 0  # unanswered for more than `BEHIND_S` when sending ended
    late_ms: float = 0.0  # p99 of how late the generator was: counted in the latencies
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    max_ms: float = 0.0
    busy_s: dict[str, float] = {}  # what the worker's beats say of its stages
    latencies_ms: list[float] = []

    @property
    def offered(self) -> bool:
        """Whether the generator kept its schedule."""
        return self.late_ms < LATE_S * 1000

    @property
    def sustained(self) -> bool:
        """Whether what was offered was kept up with."""
        return self.behind <= self.sent * BEHIND_SHARE and self.answered == self.sent


def line(turn: Turn) -> str:
    """One turn in one line."""
    told = f"{turn.who:<6} {turn.rate:>6,}/s  p50 {turn.p50_ms:8.1f} ms  p99 {turn.p99_ms:8.1f} ms"
    if not turn.offered:
        told += f"  the generator was late (p99 {turn.late_ms:.0f} ms)"
    if not turn.sustained:
        told += f"  NOT SUSTAINED: {turn.behind:,} of {turn.sent:,} behind when sending ended"
        told += f", {turn.sent - turn.answered:,} never answered" if turn.answered < turn.sent else ""
        told += f"; {bottleneck(turn)}" if turn.who == "worker" else ""
    return told


def bottleneck(turn: Turn) -> str:
    """The stage that took most of the turn.

    >>> bottleneck(Turn(who="worker", rate=9, busy_s={"fold": 1.0, "predict": 8.0, "fetch": 9.0}))
    'most of the time went into predict (8.0 s)'
    """
    working = {stage: s for stage, s in turn.busy_s.items() if stage != "fetch"}
    if not working:
        return "the worker's beats do not tell its stages"
    stage = max(working, key=working.__getitem__)
    return f"most of the time went into {STAGES.get(stage, stage)} ({working[stage]:.1f} s)"


def result(turns: Sequence[Turn], plan: Plan, **said: Any) -> dict[str, Any]:
    """All turns, and for each rate the worker beside the echo; a rate that was not sustained has no latency."""
    rates = []
    for rate in plan.rates:
        mine, theirs = ([t for t in turns if t.rate == rate and t.who == who] for who in ("worker", "echo"))
        held = all(t.sustained and t.offered for t in mine)
        entry: dict[str, Any] = {"rate": rate, "sustained": held}
        for who, of in (("worker", mine), ("echo", theirs)):
            pooled = [ms for t in of for ms in t.latencies_ms]
            entry[who] = {"p50_ms": round(quantile(pooled, 0.5), 2), "p99_ms": round(quantile(pooled, 0.99), 2)}
        entry["ratio"] = {k: round(entry["worker"][k] / entry["echo"][k], 2) if entry["echo"][k] else None
                          for k in ("p50_ms", "p99_ms")}  # fmt: skip
        if not held:
            worst = max(mine, key=lambda t: t.behind)
            entry["why"] = bottleneck(worst) if worst.offered else "the generator did not keep its schedule"
        rates.append(entry)
    plainly = [{k: v for k, v in msgspec.to_builtins(t).items() if k != "latencies_ms"} for t in turns]
    return {**said, "seconds_a_turn": plan.seconds, "rounds": plan.rounds, "rates": rates, "turns": plainly}


def table(told: dict[str, Any]) -> Iterator[str]:
    """The result as people read it."""
    yield (f"model {told['version']}, events of {told['event_bytes']} bytes, predictions of {told['prediction_bytes']};"
           f" {told['rounds']} turns of {told['seconds_a_turn']:g} s each")  # fmt: skip
    for rate in told["rates"]:
        worker, echo, ratio = rate["worker"], rate["echo"], rate["ratio"]
        yield (f"{rate['rate']:>6,}/s  event to prediction p50 {worker['p50_ms']:.1f} ms, p99 {worker['p99_ms']:.1f} "
               f"ms; echo {echo['p50_ms']:.1f} and {echo['p99_ms']:.1f}; ratio {ratio['p50_ms']} and "
               f"{ratio['p99_ms']}" + ("" if rate["sustained"] else f"  NOT SUSTAINED: {rate['why']}"))  # fmt: skip


def quantile(values: Sequence[float], share: float) -> float:
    """The nearest-rank quantile; 0 of nothing.

    >>> quantile([3, 1, 2, 4], 0.5), quantile([], 0.5)
    (2, 0.0)
    """
    ranked = sorted(values)
    return ranked[math.ceil(share * len(ranked)) - 1] if ranked else 0.0
