"""When to retrain: a function of what is known and of now; whoever asks only ticks it."""

from __future__ import annotations

from typing import Literal

import msgspec

EARLIEST = 4  # volume and drift make a retrain due after this fraction of the cadence at the earliest


class CadencePolicy(msgspec.Struct, frozen=True, kw_only=True):
    """How often; wall clock. `tune` names how the language model itself is tuned, `off` for not at all."""

    cadence_ms: int = 60_000
    volume: int = 0  # new labels that make a retrain due before the cadence has passed; 0: none do
    drift_nats: float = 0.0  # the champion's log loss on fresh labels above its own at promotion; 0: not asked
    cpu_seconds_an_hour: float = 0.0  # what retrains may take together; 0: as much as they need
    tune: str = "off"
    tune_every_ms: int = 6 * 3_600_000
    tune_budget_ms: int = 600_000


class CadenceState(msgspec.Struct, frozen=True, kw_only=True):
    """What the decision rests on; instants are None where it never happened."""

    last_start_ms: int | None = None
    last_tune_ms: int | None = None  # when the last tuning began that came to a judgement or failed
    labels: int | None = None  # about how many became known since the last retrain began; None: not known
    drifted_nats: float | None = None  # on the newest judged slice; None: nothing was judged since the promotion
    spent_cpu_seconds: float = 0.0  # by retrains within the last hour
    last_cpu_seconds: float = 0.0  # by the last one: what the next is taken to need
    champion: bool = False
    cut_off: bool = False  # the retrain begun last came to no end: its trainer died, or lost the lead
    tuning: bool = False  # a language model is being tuned, beside the retrains
    tuned: bool = False  # a tuned one waits for its judgement
    asked: bool = False  # a `retrain.now` that was not answered yet
    paused_until_ms: int | None = None
    paused_by: str = ""


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """Whether to retrain now, and why or why not."""

    kind: Literal["refresh", "prepare", "tune"] | None
    reason: str


def due(state: CadenceState, policy: CadencePolicy, now_ms: int) -> Decision:
    """A command beats a pause, a pause beats the clock. Whoever asks has no retrain running.

    Tuning the language model (`prepare`) runs beside the retrains, so that it holds none of them up; `tune` then makes
    a version with it and judges that.

    >>> due(CadenceState(), CadencePolicy(), 0).kind
    'refresh'
    """
    last = state.last_start_ms
    if state.asked:
        return Decision(kind="refresh", reason="asked for")
    if state.paused_until_ms is not None and now_ms < state.paused_until_ms:
        return Decision(kind=None, reason=f"paused by {state.paused_by}")
    if last is None:
        return Decision(kind="refresh", reason="the first")
    if state.cut_off:
        return Decision(kind="refresh", reason="the last one was cut off")
    why = _ripe(state, policy, now_ms - last)
    if why is None:
        return Decision(kind=None, reason=f"due in {(last + policy.cadence_ms - now_ms) / 1000:.0f} s")
    hourly, spent = policy.cpu_seconds_an_hour, state.spent_cpu_seconds
    if hourly and spent + state.last_cpu_seconds > hourly:
        told = f"{spent:.0f} CPU s spent in the last hour, the next takes about {state.last_cpu_seconds:.0f}"
        return Decision(kind=None, reason=f"{told}: over the budget of {hourly:.0f}")
    if state.tuned:
        return Decision(kind="tune", reason="a tuned language model is there")
    last = state.last_tune_ms
    waited = last is None or now_ms - last >= policy.tune_every_ms
    if policy.tune != "off" and state.champion and waited and not state.tuning:
        return Decision(kind="prepare", reason="a tuning of the language model is due")
    if state.labels == 0:
        return Decision(kind=None, reason="nothing came since the last retrain began")
    return Decision(kind="refresh", reason=why)


def _ripe(state: CadenceState, policy: CadencePolicy, since_ms: int) -> str | None:
    """Why enough has happened since the last retrain began; None where it has not. The clock is asked last."""
    drifted, rested = state.drifted_nats, since_ms * EARLIEST >= policy.cadence_ms
    if rested and policy.volume and state.labels is not None and state.labels >= policy.volume:
        return f"{state.labels:,} new labels, {policy.volume:,} are enough"
    if rested and policy.drift_nats and drifted is not None and drifted >= policy.drift_nats:
        return f"the champion's log loss is {drifted:+.3f} nats from its own at promotion, {policy.drift_nats} is drift"
    return "the cadence has passed" if since_ms >= policy.cadence_ms else None
