"""Events that never were in Kafka, folded into sessions and written to the lake as `~history`; files of them."""

from __future__ import annotations

import hashlib
import itertools
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

import msgspec

from deploy import order, replay
from featurestore import disk, lake, sessions
from featurestore.events import Event, Origin, Row
from featurestore.lake import PartitionKey
from streams import codec

CHUNK = 50_000
EXAMPLES = 5  # of what could not be used, a reason


class History:
    """Folds events in order of time and writes their rows behind what `~history` holds already."""

    def __init__(self, into: lake.Lake, settings: sessions.SessionSettings) -> None:
        self.lake, self.settings = into, settings
        self.end = {k: v for k, v in into.cover().end.items() if k.topic == lake.HISTORY}
        self.offsets: dict[PartitionKey, int] = defaultdict(int, self.end)
        self.open: dict[PartitionKey, sessions.OpenSessions] = defaultdict(sessions.OpenSessions)
        self.waiting: dict[PartitionKey, list[Row]] = defaultdict(list)
        self.late = 0

    def restore(self) -> None:
        """Go on with the sessions that were open where the newest rows end."""
        cover = self.lake.cover()
        for key in self.end:
            rows = [row for row in cover.rows(key) if row.origin.offset < self.offsets[key]]
            newest_ms = max((row.event.ts_ms for row in rows), default=0)
            sessions.restore(self.open[key], rows, max(0, newest_ms - self.settings.lateness_ms), self.settings)

    def take(self, event: Event) -> str:
        """Fold one event; what became of it: `stored`, `duplicate` or why not."""
        key = lake.history_key(event.user_id)
        origin = Origin(key.topic, key.partition, self.offsets[key], 0, event.ts_ms)
        folded = sessions.fold(self.open[key], event, origin, self.settings)
        if folded.row is not None:
            self.offsets[key] += 1
            self.waiting[key].append(folded.row)
            self.late += folded.row.late
        return folded.outcome

    def flush(self, *keys: PartitionKey) -> None:
        """Write what waits (for these partitions); what a run before this one wrote of it already stays as it is."""
        for key in keys or tuple(self.waiting):
            rows = self.waiting.pop(key, [])
            if rows and self.offsets[key] > self.end.get(key, 0):
                self.lake.write_rows(key, rows[0].origin.offset, rows)
            sessions.expire(self.open[key], self.settings)


def write(past: Iterable[Event], into: lake.Lake, settings: sessions.SessionSettings) -> int:
    """Write events in order of time beyond what `~history` holds already; how many rows were stored."""
    history, stored = History(into, settings), 0
    for event in past:
        stored += history.take(event) == "stored"
        key = lake.history_key(event.user_id)
        if len(history.waiting[key]) >= CHUNK:
            history.flush(key)
    history.flush()
    return stored


# ---------------------------------------------------------------- files


class Imported(msgspec.Struct, kw_only=True):
    """How far a file is: kept beside the lake, so that the same command goes on where it was stopped."""

    file: str
    messages: int = 0  # read and in the lake
    stored: int = 0
    late: int = 0  # behind the events before them: no cut is taken at them
    duplicates: int = 0
    nothing: int = 0  # messages of other systems that tell of no act
    unusable: dict[str, int] = {}  # events by reason
    examples: list[str] = []
    begun: list[tuple[int, int]] | None = None  # partitions' offsets where a batch was begun that may lie half written
    sorted: bool = False  # by time, before it was read
    done: bool = False


def bring(
    file: Path, shared: Path, settings: sessions.SessionSettings, *, dialect: str | None = None, sort: bool = False,
    keep: Collection[str] = (), batch: int = CHUNK, tell: Callable[[Imported], None] = lambda _: None,
) -> Imported:  # fmt: skip
    """Write a file's events, oldest first, into the lake; each once, however often it is stopped and begun again.

    `sort`: its lines are in no order of time and are sorted first; without it such a file raises `order.NotInOrder`
    before anything is written.
    """
    note = shared / "imports" / f"{_digest(file, dialect)}.json"
    note.parent.mkdir(parents=True, exist_ok=True)
    state = msgspec.json.decode(note.read_bytes(), type=Imported) if note.is_file() else Imported(file=str(file))
    if state.done:
        return state
    if (state.begun is not None or state.messages) and state.sorted != sort:
        how = "with" if state.sorted else "without"
        raise order.NotInOrder(f"the import of {file} was begun {how} --sort: go on {how} it")
    state.sorted = sort
    in_order, named = file, dialect
    if sort:
        in_order, named = note.with_suffix(".jsonl"), None
        if not in_order.is_file():
            order.by_time(file, in_order, dialect, keep)
    elif not state.messages:
        order.require(file, dialect, settings, keep)
    history = History(lake.Lake(shared, "import"), settings)
    if state.begun is not None:
        begun = {PartitionKey(lake.HISTORY, p): offset for p, offset in state.begun}
        history.offsets = defaultdict(int, {key: begun.get(key, 0) for key in history.end})
    if state.messages:
        history.restore()
    source = itertools.islice(replay.lines(in_order, named), state.messages, None)
    while lines := list(itertools.islice(source, batch)):
        state.begun = [(key.partition, offset) for key, offset in history.offsets.items()]
        _keep(note, state)
        for number, line in enumerate(lines, state.messages):
            _take(history, state, number, line, keep)
        history.flush()
        state.messages += len(lines)
        state.late, history.late = state.late + history.late, 0
        state.begun = None
        _keep(note, state)
        tell(state)
    state.done = True
    _keep(note, state)
    if sort:
        in_order.unlink()
    return state


def _take(history: History, state: Imported, number: int, line: replay.Line, keep: Collection[str]) -> None:
    try:
        held = codec.decode(line.value, key=line.key, record_ms=round(time.time() * 1000), keep=keep)
    except codec.BadEvent as bad:
        _unusable(state, number, bad.reason, str(bad))
        return
    state.nothing += not held
    for element in held:
        if isinstance(element, codec.BadElement):
            _unusable(state, number, element.reason, element.message)
            continue
        outcome = history.take(element)
        state.stored += outcome == "stored"
        state.duplicates += outcome == "duplicate"
        if outcome in ("too-late", "future-ts"):
            _unusable(state, number, outcome, f"event {element.event_id}: ts {element.ts_ms} lies further behind the "
                      "events before it than the lake keeps: import it with --sort")  # fmt: skip


def _unusable(state: Imported, number: int, reason: str, message: str) -> None:
    state.unusable = dict(Counter(state.unusable) + Counter({reason: 1}))
    if state.unusable[reason] <= EXAMPLES:
        state.examples = [*state.examples, f"message {number + 1}: {reason}: {message}"]


def _keep(note: Path, state: Imported) -> None:
    disk.replace(note, [msgspec.json.encode(state)])


def _digest(file: Path, dialect: str | None) -> str:
    """Names a file by what it holds: the same one is imported once, wherever it lies."""
    made = hashlib.blake2b((dialect or "").encode(), digest_size=12)
    with file.open("rb") as source:
        while block := source.read(1 << 20):
            made.update(block)
    return made.hexdigest()
