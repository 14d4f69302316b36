"""Sessions that went the same way: what their people engaged with around the same place."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int32]
Floats = NDArray[np.float32]

RING = 100  # newest sessions kept for each token
TOKENS = 50  # of a session, the newest
SESSIONS = 100_000  # kept, the newest
QUERY = 10  # tokens of the asking session, distinct, newest first
WEEK_MS = 7 * 86_400_000


class Neighbours:
    """VMIS-kNN (Kersbergen et al., SIGMOD 2022) with weights of its own; learns from every token in microseconds.

    A session is known by its serial; its place in the arrays is the serial modulo `SESSIONS`, so that the oldest
    makes room for the newest, and a ring that still names a session which has gone is recognised by its age.
    """

    def __init__(self) -> None:
        self.words: dict[str, int] = {}
        self.names: list[str] = []
        self.serials: dict[str, int] = {}  # of the sessions kept, oldest first
        self.next = 0
        self.ring, self.count = np.zeros((64, RING), np.int32), np.zeros(64, np.int32)
        self.item = np.zeros(64, np.bool_)
        self.tokens, self.length = np.zeros((64, TOKENS), np.int32), np.zeros(64, np.int32)
        self.newest_ms = np.zeros(64, np.int64)

    def take(self, session: str, name: str, is_item: bool, at_ms: int) -> None:
        """One token of a session; a repeat of its last one changes nothing."""
        word = self.words.get(name)
        if word is None:
            word = self._word(name, is_item)
        serial = self.serials.get(session)
        if serial is None:
            serial = self._open(session)
        place = serial % SESSIONS
        n, mine = int(self.length[place]), self.tokens[place]
        self.newest_ms[place] = max(int(self.newest_ms[place]), at_ms)
        if n and mine[n - 1] == word:
            return
        if word not in mine[:n]:
            self.ring[word, self.count[word] % RING] = serial
            self.count[word] += 1
        if n == TOKENS:
            mine[:-1] = mine[1:].copy()
            n -= 1
        mine[n] = word
        self.length[place] = n + 1

    def _word(self, name: str, is_item: bool) -> int:
        word = self.words[name] = len(self.names)
        self.names.append(name)
        if word == len(self.count):
            self.ring, self.count, self.item = (_doubled(a) for a in (self.ring, self.count, self.item))
        self.item[word] = is_item
        return word

    def _open(self, session: str) -> int:
        serial = self.serials[session] = self.next
        self.next += 1
        if len(self.serials) > SESSIONS:
            del self.serials[next(iter(self.serials))]
        if serial == len(self.length) < SESSIONS:
            self.tokens, self.length, self.newest_ms = (_doubled(a) for a in (self.tokens, self.length, self.newest_ms))
        self.length[serial % SESSIONS] = 0
        self.newest_ms[serial % SESSIONS] = 0
        return serial

    def recent(self, session: str, n: int) -> list[str]:
        """The newest n tokens of a session, newest first."""
        serial = self.serials.get(session)
        if serial is None:
            return []
        place = serial % SESSIONS
        end = int(self.length[place])
        return [self.names[w] for w in self.tokens[place, max(0, end - n) : end][::-1].tolist()]

    def evidence(self, query: list[str], session: str | None, at_ms: int) -> dict[str, float]:
        """Item → share of the neighbours' votes; `query`: tokens of the asking session, newest first."""
        words = [self.words[name] for name in dict.fromkeys(query) if name in self.words][:QUERY]
        if not words:
            return {}
        mine = self.serials.get(session, -1) if session is not None else -1
        found, votes = _votes(
            np.array(words), mine, self.next, at_ms, self.ring, self.count, self.item, self.tokens, self.length,
            self.newest_ms,
        )  # fmt: skip
        total = votes.sum()
        return {self.names[w]: float(v / total) for w, v in zip(found.tolist(), votes.tolist(), strict=True)}

    def state(self) -> dict[str, Any]:
        """All of it as arrays and one list of names, for a version; `of` reads it back."""
        kept = np.array(list(self.serials.values()), np.int64)
        places, words = kept % SESSIONS, len(self.names)
        arrays = {
            "serial": kept,
            "key": np.array([int(key, 16) for key in self.serials], np.uint64),
            "length": self.length[places],
            "newest_ms": self.newest_ms[places],
            "tokens": self.tokens[places][np.arange(TOKENS) < self.length[places][:, None]],
            "count": self.count[:words],
            "item": self.item[:words],
            "ring": self.ring[:words][np.arange(RING) < self.count[:words, None]],
        }
        return {"names": self.names, "next": self.next, "arrays": arrays}

    @classmethod
    def of(cls, names: list[str], nxt: int, arrays: dict[str, NDArray[Any]]) -> Neighbours:
        """The neighbours that `state` told."""
        made, words = cls(), len(names)
        made.names, made.words, made.next = names, {name: i for i, name in enumerate(names)}, nxt
        while len(made.count) < words:
            made.ring, made.count, made.item = (_doubled(a) for a in (made.ring, made.count, made.item))
        made.count[:words], made.item[:words] = arrays["count"], arrays["item"]
        made.ring[:words][np.arange(RING) < made.count[:words, None]] = arrays["ring"]
        while len(made.length) < min(nxt, SESSIONS):
            made.tokens, made.length, made.newest_ms = (_doubled(a) for a in (made.tokens, made.length, made.newest_ms))
        places = arrays["serial"] % SESSIONS
        made.serials = {
            f"{key:016x}": serial for key, serial in zip(arrays["key"].tolist(), arrays["serial"].tolist(), strict=True)
        }
        made.length[places], made.newest_ms[places] = arrays["length"], arrays["newest_ms"]
        flat = np.zeros((len(places), TOKENS), np.int32)
        flat[np.arange(TOKENS) < arrays["length"][:, None]] = arrays["tokens"]
        made.tokens[places] = flat
        return made


def _doubled(rows: NDArray[Any]) -> NDArray[Any]:
    return np.concatenate([rows, np.zeros_like(rows)])


@numba.njit(cache=True)
def _votes(query, mine, nxt, at_ms, ring, count, item, tokens, length, newest_ms):  # type: ignore[no-untyped-def] # pragma: no cover
    slots = len(length) if nxt <= len(length) else SESSIONS
    alike, anchor = np.zeros(slots, np.float32), np.full(slots, -1, np.int32)
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
    votes = np.zeros(len(count), np.float32)
    found = np.empty(n * TOKENS, np.int64)
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
            gap = j - here
            near_by = 2.0 if gap == 0 else np.exp(-0.3 * gap) if gap > 0 else 0.7 * np.exp(0.3 * gap)
            if votes[word] == 0.0:
                found[m] = word
                m += 1
            votes[word] += weight * near_by * np.sqrt(np.log(1.0 + nxt / max(1, count[word])))
    for r in range(len(query)):
        votes[query[r]] *= 2.0
    return found[:m], votes[found[:m]]
