"""The control log: commands and facts, folded by every process, followed without a consumer group."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

import kafka
import msgspec
import structlog

from streams import connection, following

log = structlog.get_logger()

VERDICTS = 50  # kept in the state
NEWEST = 10_000  # entries among which one that a writer's retry left twice is recognised
PAUSE_S, LONGEST_PAUSE_S = 0.5, 8.0  # between two tries of one entry, each of which waits 20 s for its answer
LIVE = frozenset(
    {
        "cadence",
        "cadence.volume",
        "cadence.drift",
        "cadence.cpu",
        "window",
        "window.age",
        "tune",
        "tune.every",
        "tune.budget",
    }
)


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A command (`cadence.set`) or a fact (`champion.changed`), with who said it and when."""

    id: str
    kind: str
    at_ms: int
    by: str
    data: dict[str, Any] = {}


class Pause(msgspec.Struct, frozen=True, kw_only=True):
    """Retraining stands still until then; a pause always has an end."""

    until_ms: int
    by: str


class ControlState(msgspec.Struct, frozen=True, kw_only=True):
    """What the control log says so far."""

    champion: str | None = None
    predecessor: str | None = None
    named: str | None = None  # the entry that named the champion last
    pinned: bool = False
    pinned_by: str | None = None
    pins: frozenset[str] = frozenset()  # versions that are kept whatever their age
    dials: dict[str, Any] = {}  # live settings: {name: {value, by, at_ms}}
    pause: Pause | None = None
    forgotten: frozenset[str] = frozenset()
    versions: tuple[str, ...] = ()
    running: Entry | None = None  # the retrain begun last that nothing has been said of yet
    verdicts: tuple[dict[str, Any], ...] = ()
    asked: Entry | None = None  # the newest `retrain.now`
    entries: int = 0


def fold(state: ControlState, entry: Entry) -> ControlState:
    """One entry more; an unknown kind changes nothing but the count."""
    step = _STEPS.get(entry.kind)
    try:
        changes = step(state, entry) if step is not None else {}
    except (KeyError, TypeError, ValueError) as error:
        log.warning("An entry of the control log lacks what its kind needs and is passed over.", entry=entry.id,
                    kind=entry.kind, error=repr(error))  # fmt: skip
        changes = {}
    return msgspec.structs.replace(state, entries=state.entries + 1, **changes)


def _champion(state: ControlState, entry: Entry) -> dict[str, Any]:
    if entry.data.get("predecessor") != state.champion or state.pinned:
        return {}  # stale, or made before it saw the pin
    return {"champion": entry.data["version"], "predecessor": state.champion, "named": entry.id}


def _by_hand(state: ControlState, entry: Entry) -> dict[str, Any]:
    """Promote and roll back by hand pin: automatic promotion waits for `model.unpin`."""
    version = entry.data.get("version") or state.predecessor
    if version is None:
        return {}
    return {
        "champion": version,
        "named": entry.id,
        "predecessor": state.predecessor if version == state.champion else state.champion,
        "pinned": True,
        "pinned_by": entry.by,
        "pins": state.pins | {version},
    }


def _pin(state: ControlState, entry: Entry) -> dict[str, Any]:
    version = entry.data.get("version") or state.champion
    return {"pinned": True, "pinned_by": entry.by, "pins": state.pins | ({version} if version else set())}


def _set(state: ControlState, entry: Entry) -> dict[str, Any]:
    said = {k: {"value": v, "by": entry.by, "at_ms": entry.at_ms} for k, v in entry.data.items() if k in LIVE}
    return {"dials": state.dials | said}


def _verdict(state: ControlState, entry: Entry) -> dict[str, Any]:
    verdict = {**entry.data, "at_ms": entry.at_ms}
    return {"running": None, "verdicts": (*state.verdicts, verdict)[-VERDICTS:]}


def _failed(state: ControlState, entry: Entry) -> dict[str, Any]:
    failed = {"accepted": False, "failed": True, **entry.data}
    return _verdict(state, msgspec.structs.replace(entry, data=failed))


def _tuning_failed(state: ControlState, entry: Entry) -> dict[str, Any]:
    """It ran beside the retrains: one that runs now goes on."""
    return {**_failed(state, entry), "running": state.running}


_STEPS: dict[str, Callable[[ControlState, Entry], dict[str, Any]]] = {
    "champion.changed": _champion,
    "model.promote": _by_hand,
    "model.rollback": _by_hand,
    "model.pin": _pin,
    "model.unpin": lambda s, e: {"pinned": False, "pinned_by": None, "pins": frozenset()},
    "cadence.set": _set,
    "cadence.reset": lambda s, e: {"dials": {}},
    "pause": lambda s, e: {"pause": Pause(until_ms=int(e.data["until_ms"]), by=e.by)},
    "resume": lambda s, e: {"pause": None},
    "retrain.now": lambda s, e: {"asked": e},
    "retrain.started": lambda s, e: {"running": e},
    "retrain.judged": _verdict,
    "retrain.rejected": _verdict,
    "retrain.failed": _failed,
    "tuning.failed": _tuning_failed,
    "version.published": lambda s, e: {"versions": (*s.versions, e.data["version"])},
    "forget": lambda s, e: {"forgotten": s.forgotten | {e.data["user_id"]}},
}


class ControlWriter:
    """Appends entries; each is acknowledged before `append` returns.

    Where the broker is away, who is `patient` waits for it with each entry and says so: a fact is neither lost nor, as
    those who read the log know an entry by its id, told twice. Others hear of it after 20 s.
    """

    def __init__(
        self, kafka_: str | connection.Connection, topic: str = "interest.control", *, patient: bool = False
    ) -> None:
        self.topic, self.patient = topic, patient
        said = connection.of(kafka_).for_kafka_python()
        self._producer = kafka.KafkaProducer(acks="all", enable_idempotence=False, **said)

    def append(self, kind: str, data: dict[str, Any] | None = None, *, by: str) -> Entry:
        """Write one entry; raises kafka.errors.KafkaError where the broker refuses it, or is away and nobody waits."""
        entry = Entry(id=uuid.uuid4().hex[:12], kind=kind, at_ms=int(time.time() * 1000), by=by, data=data or {})
        pause_s = PAUSE_S
        while True:
            try:
                self._producer.send(self.topic, value=msgspec.json.encode(entry), partition=0).get(timeout=20)
                return entry
            except kafka.errors.KafkaError as error:
                if not self.patient or not error.retriable:
                    raise
                log.warning("The control log cannot be written just now: what is to be said waits for the broker.",
                            kind=kind, again_s=pause_s, error=str(error))  # fmt: skip
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def close(self) -> None:
        self._producer.close(timeout=5)


class ControlLog(following.Follower):
    """The control log as this process knows it; `state` is always a fold of all that was read."""

    def __init__(
        self,
        kafka_: str | connection.Connection,
        on_entry: Callable[[Entry], None] | None = None,
        topic: str = "interest.control",
    ) -> None:
        super().__init__(kafka_, topic)
        self.on_entry = on_entry
        self.state = self._fresh = ControlState()
        self._read_so_far = self._told = 0
        self._stands = True  # whether `state` is of the log that is read now
        self.logs = 1  # how many it has been: a topic made anew is another one
        self._taking = threading.Lock()
        self._ids: dict[str, None] = {}

    def knows(self, id_: str) -> bool:
        """Whether `state` counts this entry (of the newest 10,000), and so everything that was written before it."""
        with self._taking:
            return id_ in self._ids

    def begin(self) -> None:
        self._fresh, self._read_so_far = ControlState(), 0
        self._ids.clear()

    def anew(self) -> None:
        self._told, self._stands, self.logs = 0, False, self.logs + 1

    def take(self, values: list[bytes]) -> None:
        with self._taking:
            for value in values:
                self._fresh = self._take(self._fresh, value)
            if self._fresh.entries >= self.state.entries or not self._stands:  # read again: what was known stands
                self.state, self._stands = self._fresh, True

    def _take(self, state: ControlState, value: bytes) -> ControlState:
        self._read_so_far += 1
        try:
            entry = msgspec.json.decode(value, type=Entry)
        except msgspec.MsgspecError as error:
            log.warning("An entry of the control log cannot be read and is passed over.", error=str(error))
            return state
        if entry.id in self._ids:
            return state
        self._ids[entry.id] = None
        if len(self._ids) > NEWEST:
            del self._ids[next(iter(self._ids))]
        if self.on_entry is not None and self._read_so_far > self._told:  # not again after a reconnect
            self._told = self._read_so_far
            self.on_entry(entry)
        return fold(state, entry)
