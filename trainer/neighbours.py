"""Sessions that went the same way: what their people engaged with around the same place."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from trainer.ragged import Floats, Ints, Ragged, roomy

RING = 100  # newest sessions kept for each word
TOKENS = 50  # of a session, the newest
SESSIONS = 250_000  # kept, the newest
WEEK_MS = 7 * 86_400_000
GAPS = np.arange(-TOKENS, TOKENS + 1)  # steps from the match: what came after counts more than what came before
NEAR_BY = np.where(GAPS == 0, 2.0, np.where(GAPS > 0, 1.0, 0.7) * np.exp(-0.3 * np.abs(GAPS)))


class Neighbours:
    """VMIS-kNN (Kersbergen et al., SIGMOD 2022) with weights of its own; learns from every token in microseconds.

    A word is a number. A session is known by its serial; its place in the arrays is the serial modulo `SESSIONS`, so
    that the oldest makes room for the newest, and a ring that still names one that has gone is recognised by its age.
    """

    def __init__(self) -> None:
        self.serials: dict[int, int] = {}  # digest of a session → serial, oldest first
        self.next = 0
        self._rings, self.count = Ragged(RING, np.int32), np.zeros(0, np.int32)  # serials by word
        self._tokens, self.length = Ragged(TOKENS, np.int32), np.zeros(0, np.int32)  # words by place
        self.newest_ms, self._keys = np.zeros(0, np.int64), np.zeros(0, np.uint64)  # digests by place
        self._alike, self._anchor = np.zeros(0, np.float32), np.zeros(0, np.int32)  # scratch, by place
        self._tally = np.zeros(0, np.float32)  # scratch, by word

    def take(self, session: int, word: int, at_ms: int) -> None:
        """One token of a session; a repeat of its last one changes nothing."""
        if word >= len(self.count):
            self.count = roomy(self.count, word)
            self._rings.reach(word)
        serial = self.serials.get(session)
        if serial is None:
            serial = self._open(session)
        if not self._took(serial, word, at_ms):
            place = serial % SESSIONS
            self._rings.make_room(word, min(int(self.count[word]) + 1, RING))
            self._tokens.make_room(place, min(int(self.length[place]) + 1, TOKENS))
            self._took(serial, word, at_ms)

    def _took(self, serial: int, word: int, at_ms: int) -> bool:
        rings, tokens = self._rings, self._tokens
        return _take(  # type: ignore[no-any-return]
            serial, word, at_ms, rings.start, rings.room, rings.columns[0], self.count, tokens.start, tokens.room,
            tokens.columns[0], self.length, self.newest_ms,
        )  # fmt: skip

    def _open(self, session: int) -> int:
        serial = self.serials[session] = self.next
        self.next += 1
        place = serial % SESSIONS
        if place >= len(self.length):
            self.length, self.newest_ms = roomy(self.length, place), roomy(self.newest_ms, place)
            self._keys = roomy(self._keys, place)
            self._tokens.reach(place)
        if len(self.serials) > SESSIONS:  # by its place: to look for the oldest of a dict takes ever longer
            del self.serials[int(self._keys[place])]
        self._keys[place] = session
        self._tokens.drop([place])
        self.length[place] = self.newest_ms[place] = 0
        return serial

    def drop(self, gone: NDArray[np.bool_]) -> None:
        """Forget words: they leave their sessions, and their numbers are as new."""
        self.count[: len(gone)][gone[: len(self.count)]] = 0
        self._rings.drop(np.flatnonzero(gone).tolist())
        _drop(gone, self._tokens.start, self._tokens.columns[0], self.length)

    def recent(self, session: int, n: int) -> Ints:
        """The newest n words of a session, newest first."""
        serial = self.serials.get(session)
        if serial is None:
            return np.zeros(0, np.int32)
        place = serial % SESSIONS
        first, length = int(self._tokens.start[place]), int(self.length[place])
        return self._tokens.columns[0][first + max(0, length - n) : first + length][::-1].copy()

    def votes(self, query: Ints, session: int, at_ms: int, item: NDArray[np.bool_]) -> tuple[Ints, Floats]:
        """Items and their shares of the neighbours' votes; `query`: distinct words of the asker, newest first."""
        mine = self.serials.get(session, -1)
        if len(self._anchor) < len(self.length):
            self._alike = np.zeros(len(self.length), np.float32)
            self._anchor = np.full(len(self.length), -1, np.int32)
        if len(self._tally) < len(self.count):
            self._tally = np.zeros(len(self.count), np.float32)
        return _votes(  # type: ignore[no-any-return]
            query, mine, self.next, at_ms, self._rings.start, self._rings.columns[0],
            self.count, item, self._tokens.start, self._tokens.columns[0], self.length, self.newest_ms, self._alike,
            self._anchor, self._tally,
        )  # fmt: skip

    def state(self) -> dict[str, NDArray[Any]]:
        """All of it as arrays, for a version; `of` reads it back."""
        kept = np.fromiter(self.serials.values(), np.int64, len(self.serials))
        places = kept % SESSIONS
        return {
            "next": np.array([self.next]),
            "serial": kept,
            "key": np.fromiter(self.serials, np.uint64, len(self.serials)),
            "length": self.length[places],
            "newest_ms": self.newest_ms[places],
            "tokens": self._tokens.columns[0][self._tokens.places(self.length[places], places)],
            "count": self.count,
            "ring": self._rings.columns[0][self._rings.places(np.minimum(self.count, RING))],
        }

    @classmethod
    def of(cls, state: dict[str, NDArray[Any]]) -> Neighbours:
        """The neighbours that `state` told."""
        made = cls()
        made.next, made.count = int(state["next"][0]), state["count"].copy()
        made._rings = Ragged.of(RING, np.minimum(made.count, RING), state["ring"])
        places, room = state["serial"] % SESSIONS, min(made.next, SESSIONS)
        made.serials = dict(zip(state["key"].tolist(), state["serial"].tolist(), strict=True))
        made.length, made.newest_ms = np.zeros(room, np.int32), np.zeros(room, np.int64)
        made.length[places], made.newest_ms[places] = state["length"], state["newest_ms"]
        made._keys = np.zeros(room, np.uint64)
        made._keys[places] = state["key"]
        order = np.argsort(np.repeat(places, state["length"]), kind="stable")  # by serial there, by place here
        made._tokens = Ragged.of(TOKENS, made.length, state["tokens"][order])
        return made


@numba.njit(cache=True)
def _take(  # type: ignore[no-untyped-def] # pragma: no cover
    serial, word, at_ms, r_start, r_room, ring, count, t_start, t_room, tokens, length, newest_ms
):  # fmt: skip
    """Whether there was room for it."""
    place = serial % SESSIONS
    first, n = t_start[place], length[place]
    if min(n, TOKENS - 1) >= t_room[place] or min(count[word], RING - 1) >= r_room[word]:
        return False
    newest_ms[place] = max(newest_ms[place], at_ms)
    if n and tokens[first + n - 1] == word:
        return True
    known = False
    for j in range(first, first + n):
        known = known or tokens[j] == word
    if not known:
        ring[r_start[word] + count[word] % RING] = serial
        count[word] += 1
    if n == TOKENS:
        for j in range(first, first + n - 1):
            tokens[j] = tokens[j + 1]
        n -= 1
    tokens[first + n] = word
    length[place] = n + 1
    return True


@numba.njit(cache=True)
def _drop(gone, start, tokens, length):  # type: ignore[no-untyped-def] # pragma: no cover
    for place in range(len(length)):
        first = start[place]
        n = 0
        for j in range(first, first + length[place]):
            if not gone[tokens[j]]:
                tokens[first + n] = tokens[j]
                n += 1
        length[place] = n


@numba.njit(cache=True)
def _votes(  # type: ignore[no-untyped-def] # pragma: no cover
    query, mine, nxt, at_ms, r_start, ring, count, item, t_start, tokens, length, newest_ms, alike, anchor, votes
):  # fmt: skip
    """The scratch comes and goes as zeros (`anchor`: −1): to clear all of it would cost more than the votes."""
    near = np.empty(len(query) * RING, np.int64)
    n = 0
    for r in range(len(query)):
        word = query[r]
        if word >= len(count):
            continue
        weight = 0.7**r * np.log(1.0 + nxt / max(1, count[word]))
        for k in range(r_start[word], r_start[word] + min(count[word], RING)):
            serial = ring[k]
            if serial == mine or serial < nxt - SESSIONS:
                continue
            place = serial % SESSIONS
            if anchor[place] < 0:
                anchor[place] = word
                near[n] = place
                n += 1
            alike[place] += weight
    found = np.empty(n * TOKENS, np.int32)
    m = 0
    for i in range(n):
        place = near[i]
        age = max(0.0, (at_ms - newest_ms[place]) / WEEK_MS)
        weight = alike[place] ** 1.5 * np.exp(-0.1 * age)
        here, first = -1, t_start[place]
        for j in range(length[place] - 1, -1, -1):
            if tokens[first + j] == anchor[place]:
                here = j
                break
        if here < 0:
            continue  # it has moved out of what is kept of a long session
        for j in range(length[place]):
            word = tokens[first + j]
            if not item[word]:
                continue
            if votes[word] == 0.0:
                found[m] = word
                m += 1
            votes[word] += weight * NEAR_BY[TOKENS + j - here]
    for i in range(m):
        votes[found[i]] *= np.sqrt(np.log(1.0 + nxt / max(1, count[found[i]])))
    for r in range(len(query)):
        if query[r] < len(count):
            votes[query[r]] *= 2.0
    told = votes[found[:m]]
    told /= max(told.sum(), np.float32(1e-12))
    votes[found[:m]] = 0.0
    alike[near[:n]] = 0.0
    anchor[near[:n]] = -1
    return found[:m], told
