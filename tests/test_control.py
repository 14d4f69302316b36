"""The control log is a fold: the same entries give the same state, stale facts change nothing."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from kafka import errors
from kafka.admin import KafkaAdminClient

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


def test_roll_back_to_the_champion_leaves_its_predecessor() -> None:
    """Two people who roll back at once do not make a champion its own predecessor."""
    second = ("champion.changed", {"version": "v2", "predecessor": "v1"})
    state = folded(FIRST, second, ("model.rollback", {"version": "v1"}), ("model.rollback", {"version": "v1"}))
    assert (state.champion, state.predecessor) == ("v1", "v2")


def test_an_entry_counts_and_is_heard_once() -> None:
    """A retry that came twice folds once; read again from the start, what was known stands and nobody hears it anew."""
    heard = list[str]()
    log = control.ControlLog("unused:9092", lambda entry: heard.append(entry.id))
    said = [FIRST, ("champion.changed", {"version": "v2", "predecessor": "v1"}), ("model.rollback", {})]
    entries = [control.Entry(id=str(n), kind=k, at_ms=n, by="ann", data=d) for n, (k, d) in enumerate(said)]
    values = [msgspec.json.encode(entry) for entry in (*entries, entries[-1])]
    log.begin()
    log.take(values)
    known = log.state
    assert (known.champion, known.predecessor, known.entries) == ("v1", "v2", 3)
    assert log.knows("2")
    log.begin()
    log.take(values[:1])
    assert log.state == known
    assert (log.knows("0"), log.knows("2")) == (True, False)
    later = control.Entry(id="later", kind="model.unpin", at_ms=9, by="ann")
    log.take([*values[1:], msgspec.json.encode(later)])
    assert not log.state.pinned
    assert heard == ["0", "1", "2", "later"]


class Away:
    """A producer whose broker answers as it is told, then takes everything."""

    def __init__(self, *answers: Exception) -> None:
        self.answers, self.sent = list(answers), list[control.Entry]()

    def send(self, topic: str, value: bytes, partition: int) -> Away:
        self.sent.append(msgspec.json.decode(value, type=control.Entry))
        return self

    def get(self, timeout: float) -> None:
        if self.answers:
            raise self.answers.pop(0)


def test_who_is_patient_says_one_entry_until_it_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under one id, so that it counts once; what the broker refuses is raised at once, and so it is for all others."""
    monkeypatch.setattr(control, "PAUSE_S", 0.0)
    away = Away(errors.KafkaTimeoutError(), errors.KafkaConnectionError(), errors.KafkaTimeoutError())
    monkeypatch.setattr("kafka.KafkaProducer", lambda **_: away)
    entry = control.ControlWriter("unused:9092", patient=True).append("champion.changed", FIRST[1], by="t")
    assert away.sent == [entry] * 4
    for patient, refusal in ((True, errors.TopicAuthorizationFailedError()), (False, errors.KafkaTimeoutError())):
        away.answers = [refusal]
        with pytest.raises(type(refusal)):
            control.ControlWriter("unused:9092", patient=patient).append("pause", by="t")


@pytest.mark.kafka
def test_a_log_made_anew_counts_from_its_first_entry(kafka: str) -> None:
    """A shorter log on the same address takes the place of the old one, and its entries are heard."""
    topic, heard = f"control-{uuid.uuid4().hex[:8]}", list[str]()
    admin = KafkaAdminClient(bootstrap_servers=kafka)
    one = {topic: {"num_partitions": 1, "replication_factor": 1}}
    admin.create_topics(one)
    writer = control.ControlWriter(kafka, topic)
    for version in ("v1", "v2", "v3"):
        writer.append("model.promote", {"version": version}, by="ann")
    log = control.ControlLog(kafka, lambda entry: heard.append(entry.data["version"]), topic)
    log.start()
    assert log.caught_up(30)
    admin.delete_topics([topic])
    until(lambda: made(admin, one), 30)
    until(lambda: written(writer), 60)
    until(lambda: log.state.champion == "new", 60)
    assert log.state.predecessor is None
    assert heard[:4] == ["v1", "v2", "v3", "new"]
    log.close()
    writer.close()
    admin.close()


def made(admin: KafkaAdminClient, topic: dict[str, Any]) -> bool:
    """Whether the topic could be made: not while the old one is being deleted."""
    try:
        admin.create_topics(topic)
    except errors.TopicAlreadyExistsError:
        return False
    return True


def written(writer: control.ControlWriter) -> bool:
    """Whether the first entry of the new log is written."""
    try:
        writer.append("model.promote", {"version": "new"}, by="ann")
    except errors.KafkaError:
        return False
    return True


def until(true: Callable[[], bool], seconds: float) -> None:
    """Wait for it."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.2)


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
