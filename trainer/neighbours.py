"""Sessions that went the same way: what their people engaged with around the same place."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int32]
Floats = NDArray[np.float32]

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
        self.ring, self.count = np.zeros((0, RING), np.int32), np.zeros(0, np.int32)
        self.tokens, self.length = np.zeros((0, TOKENS), np.int32), np.zeros(0, np.int32)
        self.newest_ms = np.zeros(0, np.int64)
        self._alike, self._anchor = np.zeros(0, np.float32), np.zeros(0, np.int32)  # scratch, by place
        self._tally = np.zeros(0, np.float32)  # scratch, by word

    def take(self, session: int, word: int, at_ms: int) -> None:
        """One token of a session; a repeat of its last one changes nothing."""
        if word >= len(self.count):
            self.ring, self.count = roomy(self.ring, word), roomy(self.count, word)
        serial = self.serials.get(session)
        if serial is None:
            serial = self._open(session)
        _take(serial, word, at_ms, self.ring, self.count, self.tokens, self.length, self.newest_ms)

    def _open(self, session: int) -> int:
        serial = self.serials[session] = self.next
        self.next += 1
        if len(self.serials) > SESSIONS:
            del self.serials[next(iter(self.serials))]
        place = serial % SESSIONS
        if place >= len(self.length):
            self.tokens, self.length = roomy(self.tokens, place), roomy(self.length, place)
            self.newest_ms = roomy(self.newest_ms, place)
        self.length[place] = self.newest_ms[place] = 0
        return serial

    def drop(self, gone: NDArray[np.bool_]) -> None:
        """Forget words: they leave their sessions, and their numbers are as new."""
        self.count[: len(gone)][gone[: len(self.count)]] = 0
        _drop(gone, self.tokens, self.length)

    def recent(self, session: int, n: int) -> Ints:
        """The newest n words of a session, newest first."""
        serial = self.serials.get(session)
        if serial is None:
            return np.zeros(0, np.int32)
        place = serial % SESSIONS
        end = self.length[place]
        return self.tokens[place, max(0, end - n) : end][::-1]

    def votes(self, query: Ints, session: int, at_ms: int, item: NDArray[np.bool_]) -> tuple[Ints, Floats]:
        """Items and their shares of the neighbours' votes; `query`: distinct words of the asker, newest first."""
        mine = self.serials.get(session, -1)
        if len(self._anchor) < len(self.length):
            self._alike = np.zeros(len(self.length), np.float32)
            self._anchor = np.full(len(self.length), -1, np.int32)
        if len(self._tally) < len(self.count):
            self._tally = np.zeros(len(self.count), np.float32)
        found, votes = _votes(
            query[query < len(self.count)], mine, self.next, at_ms, self.ring, self.count, item, self.tokens,
            self.length, self.newest_ms, self._alike, self._anchor, self._tally,
        )  # fmt: skip
        return found, votes / max(float(votes.sum()), 1e-12)

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
            "tokens": self.tokens[places][np.arange(TOKENS) < self.length[places][:, None]],
            "count": self.count,
            "ring": self.ring[np.arange(RING) < self.count[:, None]],
        }

    @classmethod
    def of(cls, state: dict[str, NDArray[Any]]) -> Neighbours:
        """The neighbours that `state` told."""
        made = cls()
        made.next, made.count = int(state["next"][0]), state["count"].copy()
        made.ring = np.zeros((len(made.count), RING), np.int32)
        made.ring[np.arange(RING) < made.count[:, None]] = state["ring"]
        places, room = state["serial"] % SESSIONS, min(made.next, SESSIONS)
        made.serials = dict(zip(state["key"].tolist(), state["serial"].tolist(), strict=True))
        made.length, made.newest_ms = np.zeros(room, np.int32), np.zeros(room, np.int64)
        made.length[places], made.newest_ms[places] = state["length"], state["newest_ms"]
        flat = np.zeros((len(places), TOKENS), np.int32)
        flat[np.arange(TOKENS) < state["length"][:, None]] = state["tokens"]
        made.tokens = np.zeros((room, TOKENS), np.int32)
        made.tokens[places] = flat
        return made


def roomy(rows: NDArray[Any], last: int, fill: int = 0) -> NDArray[Any]:
    """The same rows, and at least so many more that there is one of number `last`."""
    more = np.full((max(64, 2 * last + 2 - len(rows)), *rows.shape[1:]), fill, rows.dtype)
    return np.concatenate([rows, more]) if last >= len(rows) else rows


@numba.njit(cache=True)
def _take(serial, word, at_ms, ring, count, tokens, length, newest_ms):  # type: ignore[no-untyped-def] # pragma: no cover
    place = serial % SESSIONS
    n = length[place]
    newest_ms[place] = max(newest_ms[place], at_ms)
    if n and tokens[place, n - 1] == word:
        return
    known = False
    for j in range(n):
        known = known or tokens[place, j] == word
    if not known:
        ring[word, count[word] % RING] = serial
        count[word] += 1
    if n == TOKENS:
        for j in range(n - 1):
            tokens[place, j] = tokens[place, j + 1]
        n -= 1
    tokens[place, n] = word
    length[place] = n + 1


@numba.njit(cache=True)
def _drop(gone, tokens, length):  # type: ignore[no-untyped-def] # pragma: no cover
    for place in range(len(length)):
        n = 0
        for j in range(length[place]):
            if not gone[tokens[place, j]]:
                tokens[place, n] = tokens[place, j]
                n += 1
        length[place] = n


@numba.njit(cache=True)
def _votes(  # type: ignore[no-untyped-def] # pragma: no cover
    query, mine, nxt, at_ms, ring, count, item, tokens, length, newest_ms, alike, anchor, votes
):  # fmt: skip
    """The scratch comes and goes as zeros (`anchor`: −1): to clear all of it would cost more than the votes."""
    near = np.empty(len(query) * RING, np.int64)
    n = 0
    for r in range(len(query)):
        word = query[r]
        weight = 0.7**r * np.log(1.0 + nxt / max(1, count[word]))
        for k in range(min(count[word], RING)):
            serial = ring[word, k]
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
        here = -1
        for j in range(length[place] - 1, -1, -1):
            if tokens[place, j] == anchor[place]:
                here = j
                break
        if here < 0:
            continue  # it has moved out of what is kept of a long session
        for j in range(length[place]):
            word = tokens[place, j]
            if not item[word]:
                continue
            if votes[word] == 0.0:
                found[m] = word
                m += 1
            votes[word] += weight * NEAR_BY[TOKENS + j - here]
    for i in range(m):
        votes[found[i]] *= np.sqrt(np.log(1.0 + nxt / max(1, count[found[i]])))
    for r in range(len(query)):
        votes[query[r]] *= 2.0
    told = votes[found[:m]]
    votes[found[:m]] = 0.0
    alike[near[:n]] = 0.0
    anchor[near[:n]] = -1
    return found[:m], told
