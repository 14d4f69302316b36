"""When to retrain: a function of what is known and of now; whoever asks only ticks it."""

from __future__ import annotations

from typing import Literal

import msgspec


class CadencePolicy(msgspec.Struct, frozen=True, kw_only=True):
    """How often; wall clock. `tune` names how the language model itself is tuned, `off` for not at all."""

    cadence_ms: int = 60_000
    tune: str = "off"
    tune_every_ms: int = 6 * 3_600_000
    tune_budget_ms: int = 600_000


class CadenceState(msgspec.Struct, frozen=True, kw_only=True):
    """What the decision rests on; instants are None where it never happened."""

    last_start_ms: int | None = None
    last_tune_ms: int | None = None  # when the last tuning began that came to a judgement or failed
    champion: bool = False
    running: bool = False
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
    """A command beats a pause, a pause beats the clock, and one retrain runs at a time.

    Tuning the language model (`prepare`) runs beside the retrains, so that it holds none of them up; `tune` then makes
    a version with it and judges that.

    >>> due(CadenceState(), CadencePolicy(), 0).kind
    'refresh'
    """
    last = state.last_start_ms
    if state.running:
        return Decision(kind=None, reason="a retrain is running")
    if state.asked:
        return Decision(kind="refresh", reason="asked for")
    if state.paused_until_ms is not None and now_ms < state.paused_until_ms:
        return Decision(kind=None, reason=f"paused by {state.paused_by}")
    if last is None:
        return Decision(kind="refresh", reason="the first since this trainer leads")
    wait_ms = last + policy.cadence_ms - now_ms
    if wait_ms > 0:
        return Decision(kind=None, reason=f"due in {wait_ms / 1000:.0f} s")
    if state.tuned:
        return Decision(kind="tune", reason="a tuned language model is there")
    last = state.last_tune_ms
    waited = last is None or now_ms - last >= policy.tune_every_ms
    if policy.tune != "off" and state.champion and waited and not state.tuning:
        return Decision(kind="prepare", reason="a tuning of the language model is due")
    return Decision(kind="refresh", reason="the cadence has passed")
