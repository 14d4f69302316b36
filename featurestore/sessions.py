"""The only sessioniser, live and in training: fold events into sessions, merge, expire, restore; no clock, no I/O."""

from __future__ import annotations

import gc
import hashlib
import heapq
from collections.abc import Iterable, Iterator
from typing import Literal

import msgspec

from featurestore import bots
from featurestore.events import Event, Origin, Row, Session

CAP = 500  # rows of a session held in memory; older ones count only
FUTURE_MS = 3_600_000  # how far an event time may be ahead of its record's own timestamp

Outcome = Literal["stored", "duplicate", "too-late", "future-ts"]


class SessionSettings(msgspec.Struct, frozen=True, kw_only=True):
    """When sessions end, what is too old and what is no person's; every duration is on the event clock."""

    gap_ms: int = 1_800_000
    lateness_ms: int = 120_000
    lake_keep_ms: int = 30 * 86_400_000
    bots: bots.Rule = bots.Rule()


class Folded(msgspec.Struct, frozen=True, gc=False):
    """What became of one event: its row and session, or neither and why."""

    row: Row | None
    session: Session | None  # live: it goes on changing with later rows
    outcome: Outcome


_DUPLICATE = Folded(None, None, "duplicate")
_TOO_LATE = Folded(None, None, "too-late")
_FUTURE_TS = Folded(None, None, "future-ts")


class _Open(Session, gc=False):
    """A session with the ids of its rows in memory, by which a repeated event is known; made when first asked for.

    Beside it what `bots.judge` goes by.
    """

    ids: set[str] | None = None
    acts: int = 0
    ahead_ms: int = 0
    bot: str | None = None

    def has(self, event_id: str) -> bool:
        """Whether one of its rows in memory is this event."""
        if self.ids is None:
            self.ids = {row.event.event_id for row in self.rows}
        return event_id in self.ids


class OpenSessions:
    """The open sessions of one partition, its watermark and what became of its events."""

    __slots__ = ("_count", "_due", "_users", "duplicates", "rejected", "stored", "watermark_ms")

    def __init__(self, watermark_ms: int = 0) -> None:
        self.watermark_ms = watermark_ms
        self.stored = 0
        self.duplicates = 0
        self.rejected = 0
        self._users: dict[str, dict[str, _Open]] = {}
        self._due: list[tuple[int, str, str]] = []  # heap of (a past last_ms, user, session): looked at again, once due
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def sessions(self) -> Iterator[Session]:
        """Every session in memory, in no particular order."""
        for mine in self._users.values():
            yield from mine.values()

    def get(self, user_id: str, session_id: str) -> Session | None:
        """One session in memory, if it is there."""
        return self._users.get(user_id, {}).get(session_id)

    def of(self, user_id: str) -> list[Session]:
        """A user's sessions in memory."""
        return list(self._users.get(user_id, {}).values())

    def forget(self, users: Iterable[str]) -> None:
        """Drop these users' sessions."""
        for user_id in users:
            for session in self.of(user_id):
                self._pop(user_id, session.session_id)

    def _add(self, session: _Open) -> None:
        mine = self._users.setdefault(session.user_id, {})
        if session.session_id not in mine:  # a producer's own id may come back before its old session was dropped
            self._count += 1
            heapq.heappush(self._due, (session.last_ms, session.user_id, session.session_id))
        mine[session.session_id] = session

    def _pop(self, user_id: str, session_id: str) -> _Open | None:
        mine = self._users.get(user_id)
        session = mine.pop(session_id, None) if mine else None
        if session is not None:
            self._count -= 1
            if not mine:
                del self._users[user_id]
        return session


def fold(open: OpenSessions, event: Event, origin: Origin, settings: SessionSettings) -> Folded:
    """Judge one event and put it into its session; what it becomes depends on it and those before it alone.

    A row joins its user's session whose [first - gap, last + gap] holds its event time and which the watermark has
    not passed by gap + lateness; a bridge joins the oldest and absorbs the others; a producer's own session id is
    kept, never merged and not split by gaps.
    """
    ts, watermark = event.ts_ms, open.watermark_ms
    if ts > origin.record_ms + FUTURE_MS:
        open.rejected += 1
        return _FUTURE_TS
    if ts < watermark - settings.lake_keep_ms:
        open.rejected += 1
        return _TOO_LATE
    gap = settings.gap_ms
    passed = watermark - gap - settings.lateness_ms  # a session whose last row is older is closed
    session: _Open | None = None
    absorbs: tuple[str, ...] = ()
    mine = open._users.get(event.user_id)
    if mine:
        if event.session_id:
            session = mine.get(event.session_id)
            if session is not None and session.last_ms < passed:
                session = None
        else:
            bridged: list[_Open] = []
            for s in mine.values():
                if s.last_ms >= passed and s.first_ms - gap <= ts <= s.last_ms + gap:
                    bridged.append(s)
            if bridged:
                session = bridged[0]
                if len(bridged) > 1:
                    if any(s.has(event.event_id) for s in bridged):
                        open.duplicates += 1
                        return _DUPLICATE
                    session, absorbs = _merge_bridged(open, bridged)
        if session is not None and session.has(event.event_id):
            open.duplicates += 1
            return _DUPLICATE
    open.stored += 1
    if ts - settings.lateness_ms > watermark:
        open.watermark_ms = ts - settings.lateness_ms
    late = ts < watermark
    if session is None:
        session = _empty(event.session_id or derived_id(origin), event)
        bot = bots.judge(session, ts, event.type, event.properties, settings.bots)
        row = Row(event, origin, session.session_id, late, 1, (), bot)
        _append(session, row)
        if ts >= passed:  # else it is closed already: nothing can join it
            open._add(session)
        return Folded(row, session, "stored")
    seen = len(session.rows) + 1
    bot = bots.judge(session, ts, event.type, event.properties, settings.bots)
    row = Row(event, origin, session.session_id, late, seen if seen < CAP else CAP, absorbs, bot)
    _append(session, row)
    return Folded(row, session, "stored")


def expire(open: OpenSessions, settings: SessionSettings) -> list[Session]:
    """Drop and return what the watermark has passed by gap + lateness; costs what is due, not what is open."""
    passed = passed_ms(open.watermark_ms, settings)
    due = open._due
    gone: list[Session] = []
    while due and due[0][0] < passed:
        _, user_id, session_id = due[0]
        session = open._users.get(user_id, {}).get(session_id)
        if session is not None and session.last_ms >= passed:
            heapq.heapreplace(due, (session.last_ms, user_id, session_id))
            continue
        heapq.heappop(due)
        if session is not None:
            open._pop(user_id, session_id)
            gone.append(session)
    return gone


def raise_watermark(open: OpenSessions, to_ms: int) -> None:
    """Raise the watermark of a partition that is silent; it never goes back."""
    open.watermark_ms = max(open.watermark_ms, to_ms)


def restore(open: OpenSessions, rows: Iterable[Row], watermark_ms: int, settings: SessionSettings) -> None:
    """Rebuild open sessions from their rows in offset order, by what each row recorded: nothing is judged anew.

    The rows of a session must be there from its opening one, those of sessions that it absorbed included.
    """
    live: dict[tuple[str, str], _Open] = {}
    collecting = gc.isenabled()
    gc.disable()  # all of it stays: looking for garbage in between costs as much as the rest
    try:
        _rebuild(live, rows, settings.bots)
    finally:
        if collecting:
            gc.enable()
    raise_watermark(open, watermark_ms)
    passed = passed_ms(open.watermark_ms, settings)
    for session in live.values():
        if session.last_ms >= passed:
            open._add(session)


def passed_ms(watermark_ms: int, settings: SessionSettings) -> int:
    """A session whose last row is older than this instant is closed."""
    return watermark_ms - settings.gap_ms - settings.lateness_ms


def cut(rows: Iterable[Row], since_ms: int) -> set[str]:
    """Users with a session that has a row from an instant on and more of them before those at hand (the newest)."""
    held: dict[tuple[str, str], int] = {}
    said: dict[tuple[str, str], int] = {}
    recent: set[tuple[str, str]] = set()
    for row in rows:
        user_id = row.event.user_id
        key = (user_id, row.session_id)
        before = 0 if row.seen == 1 else held.get(key, 0)
        held[key] = before + 1 + sum(held.pop((user_id, sid), 0) for sid in row.absorbs)
        said[key] = row.seen
        if row.event.ts_ms >= since_ms or any((user_id, sid) in recent for sid in row.absorbs):
            recent.add(key)
    return {key[0] for key in recent & held.keys() if held[key] < said[key] or said[key] == CAP}


def whole(rows: list[Row], since_ms: int) -> list[Row]:
    """Of rows in order those of sessions with one from an instant on, what they absorbed included."""
    wanted = set()
    for row in rows:  # what is absorbed comes before what absorbs it
        user_id = row.event.user_id
        if row.event.ts_ms >= since_ms or any((user_id, sid) in wanted for sid in row.absorbs):
            wanted.add((user_id, row.session_id))
    kept = []
    for row in reversed(rows):  # what absorbs comes after what it absorbed
        user_id = row.event.user_id
        if (user_id, row.session_id) in wanted:
            wanted |= {(user_id, sid) for sid in row.absorbs}
            kept.append(row)
    return kept[::-1]


def derived_id(origin: Origin) -> str:
    """The id of the session that the row from this origin opens.

    >>> derived_id(Origin("clickstream.events@log", 3, 41, 0, 0))
    '464b559d53680ae1'
    """
    identity = f"{origin.topic}|{origin.partition}|{origin.offset}|{origin.n}"
    return hashlib.blake2b(identity.encode(), digest_size=8).hexdigest()


def _empty(session_id: str, event: Event) -> _Open:
    """A session that its first row has not joined yet."""
    return _Open(session_id, event.user_id, event.ts_ms, event.ts_ms, [], 0, bool(event.session_id))


def _append(session: _Open, row: Row) -> None:
    event = row.event
    ts = event.ts_ms
    if ts > session.last_ms:
        session.last_ms = ts
    elif ts < session.first_ms:
        session.first_ms = ts
    rows = session.rows
    rows.append(row)
    session.count += 1
    ids = session.ids
    if ids is not None:
        ids.add(event.event_id)
    if len(rows) > CAP:
        gone = rows.pop(0)
        if ids is not None:
            ids.discard(gone.event.event_id)


def _rebuild(live: dict[tuple[str, str], _Open], rows: Iterable[Row], rule: bots.Rule) -> None:
    for row in rows:
        event = row.event
        user_id, ts = event.user_id, event.ts_ms
        session = None if row.seen == 1 else live.get((user_id, row.session_id))
        if session is None:
            session = live[user_id, row.session_id] = _empty(row.session_id, event)
        elif row.absorbs:
            absorbed = [live.pop((user_id, sid), None) for sid in row.absorbs]
            _absorb(session, [s for s in absorbed if s is not None])
        bots.judge(session, ts, event.type, None, rule)
        session.bot = row.bot  # as it was judged then, whatever the rule is now
        _append(session, row)


def _merge_bridged(open: OpenSessions, bridged: list[_Open]) -> tuple[_Open, tuple[str, ...]]:
    """The session to join among several that hold the row's event time, and those it absorbed on the way."""
    derived = sorted((s for s in bridged if not s.own_id), key=lambda s: (s.first_ms, s.session_id))
    if not derived:
        return max(bridged, key=lambda s: (s.last_ms, s.session_id)), ()
    session, *younger = derived
    for s in younger:
        open._pop(s.user_id, s.session_id)
    _absorb(session, younger)
    return session, tuple(s.session_id for s in younger)


def _absorb(session: _Open, younger: list[_Open]) -> None:
    for s in younger:
        session.rows.extend(s.rows)
        session.count += s.count
        session.first_ms = min(session.first_ms, s.first_ms)
        session.last_ms = max(session.last_ms, s.last_ms)
        session.acts += s.acts
        session.ahead_ms = max(session.ahead_ms, s.ahead_ms)
        session.bot = session.bot or s.bot
    session.rows.sort(key=lambda r: (r.origin.offset, r.origin.n))
    del session.rows[:-CAP]
    session.ids = None
