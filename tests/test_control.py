"""The control log is a fold: the same entries give the same state, stale facts change nothing."""

from __future__ import annotations

from typing import Any

from deploy import settings
from streams import control


def folded(*entries: tuple[str, dict[str, Any]]) -> control.ControlState:
    """The state after these entries."""
    state = control.ControlState()
    for n, (kind, data) in enumerate(entries):
        state = control.fold(state, control.Entry(id=str(n), kind=kind, at_ms=n, by="ann", data=data))
    return state


def test_every_live_setting_can_be_set_by_the_log() -> None:
    """What the commands offer to change while everything runs is what the fold takes."""
    assert {dial.name for dial in settings.DIALS if dial.live} == control.LIVE


FIRST = ("champion.changed", {"version": "v1", "predecessor": None})


def test_champion_change_that_names_another_predecessor_is_stale() -> None:
    """Two trainers that both thought they led cannot overwrite each other."""
    second = ("champion.changed", {"version": "v2", "predecessor": "v1"})
    stale = ("champion.changed", {"version": "v3", "predecessor": "v1"})
    state = folded(FIRST, second, stale)
    assert (state.champion, state.predecessor) == ("v2", "v1")


def test_promote_and_roll_back_by_hand_pin_until_unpinned() -> None:
    """After a roll-back automatic promotion waits for `model.unpin`."""
    second = ("champion.changed", {"version": "v2", "predecessor": "v1"})
    third = ("champion.changed", {"version": "v3", "predecessor": "v1"})
    back = ("model.rollback", {})
    assert folded(FIRST, second, back).champion == "v1"
    assert folded(FIRST, second, back, third).champion == "v1"
    assert folded(FIRST, second, back, ("model.unpin", {}), third).champion == "v3"


def test_cadence_pause_and_forgotten_are_found_again() -> None:
    """Live dials carry who and when; only live ones are taken; an unknown kind is passed over."""
    state = folded(
        ("cadence.set", {"cadence": "30s", "tune.every": "1h", "kafka": "elsewhere:9092"}),
        ("pause", {"until_ms": 99}),
        ("forget", {"user_id": "bob"}),
        ("something.new", {}),
        ("pause", {}),
    )
    said = {"by": "ann", "at_ms": 0}
    assert state.dials == {"cadence": {"value": "30s"} | said, "tune.every": {"value": "1h"} | said}
    assert state.pause == control.Pause(until_ms=99, by="ann")
    assert state.forgotten == {"bob"}
    assert state.entries == 5
    assert folded(("cadence.set", {"cadence": "30s"}), ("cadence.reset", {})).dials == {}
