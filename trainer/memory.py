"""Counts that learn from every event: transitions, popularity, neighbours, and what is in the session already."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numba
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from featurestore.catalogue import Item
from featurestore.events import Event, Row
from trainer.arrivals import Arrivals
from trainer.endings import HORIZON_MS, LATENESS_MS, Endings
from trainer.followers import FOLLOWERS, Followers
from trainer.neighbours import Neighbours
from trainer.ragged import Ints, roomy

HALF_LIFE_MS = 24 * 3_600_000  # of popularity
PROPOSED = 100  # candidates of the neighbours, and of popularity where there are few
WORDS = 400_000  # when these are full, an eighth of them is given back
SEARCHES = 100_000  # of them: most are said once
WORTH_HALF_LIFE_MS = 7 * 86_400_000  # of how often a word was said
ITEM_WORTH = 16  # a query is kept as an item is that was said a sixteenth as often
RECENT = 20  # rows of a session that evidence is sought for
QUERY = 10  # distinct words of them
SEARCH = "q:"  # before the words of a search
LISTING = "c:"  # before a category
ALONE = np.array([1.0, 0.3, 0.15, 0.0, 1.0, 0.0])  # what each kind of evidence weighs before a version is trained
EVIDENCE = ("follows", "category", "in_session", "popularity", "neighbours", "after_last")
FADING = 0.6 ** np.arange(4, dtype=np.float32)  # what comes after several is counted after each, less and less
NONE = np.zeros(0, np.int32)
ONCE = np.ones(1, np.float32)


class Known(msgspec.Struct, array_like=True):
    """What is known of an item, as its newest event or the catalogue told."""

    title: str | None
    category: str | None
    brand: str | None
    price: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Crossing:
    """The category that a session was in last, of an item or a listing, and what came after it so far."""

    left: int = -1  # its word, −1: none
    after: Ints = field(default_factory=lambda: NONE)  # [n] words of categories
    times: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))  # [n]


def token(row: Row) -> str:
    """What a row adds to the sequence of a session: an item, else a listing, a query, or what was done."""
    event = row.event
    if event.item_id:
        return event.item_id
    if event.category:
        return LISTING + event.category
    return SEARCH + event.query.lower().strip() if event.query else "t:" + event.type


def digest(row: Row) -> int:
    """Names a row's session without naming its user: what a version ships."""
    made = hashlib.blake2b(f"{row.event.user_id}|{row.session_id}".encode(), digest_size=8)
    return int.from_bytes(made.digest(), "big")


def current_item(rows: list[Row]) -> str | None:
    """The item that a session is at: what comes next is a different one."""
    return next((row.event.item_id for row in reversed(rows) if row.engages), None)


def last_category(rows: list[Row]) -> str | None:
    """The category that a session was in last, of an item or a listing."""
    return next((row.event.category for row in reversed(rows) if row.event.category), None)


def own_items(rows: list[Row]) -> dict[str, int]:
    """What a session engaged with among its newest rows → how many other items ago, the current one 0."""
    made: dict[str, int] = {}
    for row in reversed(rows[-RECENT:]):
        if row.event.item_id and row.engages:
            made.setdefault(row.event.item_id, len(made))
    return made


def _worth(before: float, event: Event) -> float:
    """How often and how lately a word was said, as one number: the instant at which its faded count is one.

    LRFU (Lee et al., IEEE Trans. Computers 2001) with a half-life of `WORTH_HALF_LIFE_MS`: being said twice as often
    is worth as much as being said a half-life later.
    """
    said = event.ts_ms + (WORTH_HALF_LIFE_MS * math.log2(ITEM_WORTH) if event.item_id or event.category else 0.0)
    apart = abs(said - before) / WORTH_HALF_LIFE_MS
    return max(said, before) + WORTH_HALF_LIFE_MS * math.log2(1.0 + 2.0**-apart)


class Memory:
    """A fold over rows with the offsets it has seen; what is below them changes nothing. Words are numbers.

    There are `WORDS` of them at most, `SEARCHES` of these searches: when they are used up, those of least worth are
    forgotten, so that a shop whose items and searches change for years goes on learning.
    """

    def __init__(self, horizon_ms: int = HORIZON_MS, lateness_ms: int = LATENESS_MS) -> None:
        self.seen: dict[tuple[str, int], int] = {}
        self.names: list[str] = []  # "": the number is free
        self.words: dict[str, int] = {}
        self.searches = 0  # among the words
        self._free: list[int] = []  # the smallest last
        self.worth_ms = np.zeros(0, np.float64)  # of each word: see `_worth`
        self.items: dict[str, Known] = {}
        self.arrivals = Arrivals()
        self.withdrawn: set[str] = set()  # by the catalogue: no items, whatever events say of them
        self.item = np.zeros(0, np.bool_)  # of each word: is it an item
        self.category = np.zeros(0, np.int32)  # of each item: the word of its category, −1: not told
        self.popular, self.popular_ms = np.zeros(0, np.float64), np.zeros(0, np.int64)  # faded count, as of when
        self.follows, self.shelves = Followers(), Followers()  # of any word; of a category
        self.crossings = Followers(itself=True)  # category → that of the next different item
        self.neighbours = Neighbours()
        self.endings = Endings(horizon_ms, lateness_ms)  # of sessions
        self.watchers: list[set[str]] = []
        self._place = np.zeros(0, np.int32)  # scratch: where a word stands among the candidates
        self._top: tuple[Ints, int] | None = None

    def watch(self) -> set[str]:
        """A set into which the items go that change, are new or are forgotten from now on; whoever asked empties it."""
        self.watchers.append(set())
        return self.watchers[-1]

    def learn(self, rows: list[Row]) -> int:
        """Fold rows in order; returns how many were new. Rows of one message come in one call."""
        fresh, floor = 0, dict(self.seen)
        for row in rows:
            origin = row.origin
            if origin.offset >= floor.get((origin.topic, origin.partition), 0):
                self.take(row)
                fresh += 1
        self.note(rows)
        return fresh

    def note(self, rows: list[Row]) -> None:
        """Remember that these rows were seen."""
        for row in rows:
            place = (row.origin.topic, row.origin.partition)
            self.seen[place] = max(self.seen.get(place, 0), row.origin.offset + 1)

    def take(self, row: Row) -> None:
        """Fold one row, whatever its offset; `learn` is what remembers offsets."""
        event = row.event
        if not event.consent or row.bot is not None:
            return
        if len(self.words) > WORDS - 2:  # room for what the row says and for its category
            self.make_room()
        elif self.searches >= SEARCHES:
            self.make_room(SEARCHES, lambda name: name.startswith(SEARCH))
        word = self.word(token(row))
        self.worth_ms[word] = _worth(float(self.worth_ms[word]), event)
        session = digest(row)
        if event.item_id and event.item_id not in self.withdrawn:
            self.item[word] = True
            self._know(event.item_id, word, Known(event.title, event.category, event.brand, event.price))
            if row.engages:
                self._engage(word, session, event.ts_ms)
        self.neighbours.take(session, word, event.ts_ms)
        self.endings.take(session, row)

    def stock(self, told: Iterable[Item]) -> int:
        """Take what the catalogue tells, in order; returns how many items are known otherwise than before.

        An item that nobody touched is proposed by its category and its text from now on; one that is withdrawn is
        proposed no more, and what events say of it is not counted until it is told anew.
        """
        return sum([self._withdraw(item.item_id) if not item.available else self._stock(item) for item in told])

    def _stock(self, item: Item) -> bool:
        name, told = item.item_id, Known(item.title, item.category, item.brand, item.price)
        back = name in self.withdrawn
        self.withdrawn.discard(name)
        if self.items.get(name) == told and not back:
            return False
        if len(self.words) > WORDS - 2:
            self.make_room()
        word = self.word(name)
        self.item[word] = True
        self.worth_ms[word] = max(float(self.worth_ms[word]), float(item.told_ms))
        self._know(name, word, told)
        if not self.popular[word]:
            self.arrivals.put(word, int(self.category[word]))
        self._top = None
        return True

    def _withdraw(self, name: str) -> bool:
        if name in self.withdrawn:
            return False
        self.withdrawn.add(name)
        if self.items.pop(name, None) is not None:
            word = self.words[name]
            self.item[word], self._top = False, None
            self.arrivals.drop(word)
            for watcher in self.watchers:
                watcher.add(name)
        return True

    def word(self, name: str) -> int:
        """The number of a word, the smallest free one where it is new."""
        word = self.words.get(name)
        if word is None:
            if self._free:
                word = self._free.pop()
                self.names[word] = name
            else:
                word = len(self.names)
                self.names.append(name)
            self.words[name] = word
            self.searches += name.startswith(SEARCH)
            if word >= len(self.item):
                self.item, self.category = roomy(self.item, word), roomy(self.category, word, fill=-1)
                self.popular, self.popular_ms = roomy(self.popular, word), roomy(self.popular_ms, word)
                self._place, self.worth_ms = roomy(self._place, word, fill=-1), roomy(self.worth_ms, word)
        return word

    def make_room(self, of: int | None = None, which: Callable[[str], bool] | None = None) -> None:
        """Forget the words of least worth, an eighth of all, wherever they stand; no category that an item is of.

        `which`: only of those whose names are such, an eighth `of` so many.
        """
        n = len(self.names)
        may = np.ones(n, np.bool_)
        may[self._free] = False
        shelves = self.category[:n]
        may[shelves[shelves >= 0]] = False
        chosen = np.flatnonzero(may)
        if which is not None:
            chosen = chosen[[which(self.names[word]) for word in chosen.tolist()]]
        chosen = chosen[np.argsort(self.worth_ms[chosen], kind="stable")[: max(2, (of or WORDS) // 8)]]
        for word in chosen.tolist():
            name, self.names[word] = self.names[word], ""
            self.searches -= name.startswith(SEARCH)
            del self.words[name]
            self.arrivals.drop(word)
            if self.items.pop(name, None) is not None:
                for watcher in self.watchers:
                    watcher.add(name)
        for counted in (self.item, self.popular, self.popular_ms, self.worth_ms):
            counted[chosen] = 0
        self.category[chosen] = -1
        gone = np.zeros(n, np.bool_)
        gone[chosen] = True
        self.follows.drop(gone)
        self.shelves.drop(gone)
        self.crossings.drop(gone)
        self.neighbours.drop(gone)
        self._free, self._top = sorted([*self._free, *chosen.tolist()], reverse=True), None

    def _know(self, name: str, word: int, told: Known) -> None:
        """The newest value of each field; what is left out is kept."""
        old = self.items.get(name)
        if old is not None:
            told = Known(
                told.title or old.title, told.category or old.category, told.brand or old.brand,
                old.price if told.price is None else told.price,
            )  # fmt: skip
        if told == old:
            return
        self.items[name] = told
        if told.category and (old is None or old.category != told.category):
            self.category[word] = self.word(LISTING + told.category)
        for watcher in self.watchers:
            watcher.add(name)

    def _engage(self, word: int, session: int, at_ms: int) -> None:
        self.arrivals.drop(word)
        newest = max(int(self.popular_ms[word]), at_ms)  # rows come by partition, not by time
        before, now = (0.5 ** ((newest - ms) / HALF_LIFE_MS) for ms in (int(self.popular_ms[word]), at_ms))
        self.popular[word] = float(self.popular[word]) * before + now
        self.popular_ms[word] = newest
        recent = self.neighbours.recent(session, QUERY)
        if self.category[word] >= 0:
            self.shelves.add(self.category[word : word + 1], word, FADING)
            if (left := self._left(recent, word)) >= 0:
                self.crossings.add(np.array([left], np.int32), int(self.category[word]), ONCE)
        self.follows.add(recent[: len(FADING)], word, FADING)

    def _left(self, recent: Ints, word: int) -> int:
        """The category that a session comes from to an item, its words the newest first; −1: none, or it was there."""
        left = -1
        for one in recent.tolist():
            if self.item[one]:
                return -1 if one == word else left if left >= 0 else int(self.category[one])
            if left < 0 and self.names[one].startswith(LISTING):
                left = one
        return left

    def crossing(self, rows: list[Row]) -> Crossing:
        """Which category a session comes from, and what came after it so far."""
        left = self._shelf(rows)
        after, times = self.crossings.after(left)
        return Crossing(left=left, after=after, times=times)

    def _shelf(self, rows: list[Row]) -> int:
        """The word of the category that a session was in last, −1: none that is known."""
        last = last_category(rows)
        return self.words.get(LISTING + last, -1) if last else -1

    def evidence(self, rows: list[Row], at_ms: int, also: Ints = NONE) -> tuple[Ints, NDArray[np.float64]]:
        """Candidates of a session as words [n] with `EVIDENCE` [n, 6]; never the current item, nor a withdrawn one.

        `also` are candidates that somebody else proposes; arrivals of the session's category are among them anyway.
        """
        words = (self.words.get(name) for name in dict.fromkeys(token(row) for row in reversed(rows[-RECENT:])))
        query = np.array([word for word in words if word is not None][:QUERY], np.int32)
        found, votes = self.neighbours.votes(query, digest(rows[-1]), at_ms, self.item)
        if len(found) > PROPOSED:
            best = np.argpartition(votes, -PROPOSED)[-PROPOSED:]
            found, votes = found[best], votes[best]
        own = [(self.words[name], ago) for name, ago in own_items(rows).items() if name in self.words]
        mine, ago = (np.array([pair[k] for pair in own], np.int32) for k in (0, 1))
        shelf = self._shelf(rows)
        if shelf >= 0 and len(self.arrivals):
            also = np.concatenate([also, self.arrivals.on(shelf)])
        return _evidence(  # type: ignore[no-any-return]
            query, shelf, mine, ago, found, votes, also, self.top(at_ms), at_ms, *self.follows.arrays,
            *self.shelves.arrays, self.popular, self.popular_ms, self._place, self.item,
        )  # fmt: skip

    def score(self, rows: list[Row], at_ms: int, also: Ints = NONE) -> tuple[Ints, NDArray[np.float64]]:
        """One unnormalised score a candidate: what answers before the first version is trained."""
        found, seen = self.evidence(rows, at_ms, also)
        return found, seen @ ALONE + 1e-4

    def top(self, at_ms: int) -> Ints:
        """The most popular items just now; sorted anew once an hour of event time."""
        if self._top is None or len(self._top[0]) < PROPOSED or abs(at_ms - self._top[1]) >= 3_600_000:
            words = np.flatnonzero(self.popular * self.item)
            now = self.popular[words] * 0.5 ** (np.maximum(0, at_ms - self.popular_ms[words]) / HALF_LIFE_MS)
            self._top = words[np.argsort(-now, kind="stable")[:PROPOSED]].astype(np.int32), at_ms
        return self._top[0]

    def save(self, directory: Path) -> None:
        """Write `memory.json` and `memory.safetensors`."""
        (directory / "memory.json").write_bytes(msgspec.json.encode(self.state()))
        save_file(self.arrays(), directory / "memory.safetensors")

    @classmethod
    def load(cls, directory: Path) -> Memory:
        """What `save` wrote."""
        state: dict[str, Any] = msgspec.json.decode((directory / "memory.json").read_bytes())
        arrays, made = load_file(directory / "memory.safetensors"), cls()
        made.seen = {(t, p): o for t, p, o in state["seen"]}
        made.names, made.words = state["names"], {name: i for i, name in enumerate(state["names"]) if name}
        made.searches = sum(name.startswith(SEARCH) for name in made.words)
        made._free = [i for i in reversed(range(len(made.names))) if not made.names[i]]
        made.items = {k: Known(*v) for k, v in state["items"].items()}
        made.withdrawn = set(state.get("withdrawn", ()))  # versions before it have none
        made.item, made.category = arrays["item"], arrays["category"]
        made.popular, made.popular_ms = arrays["popular"], arrays["popular_ms"]
        made.worth_ms = arrays.get("worth_ms", made.popular_ms.astype(np.float64))  # versions before it have none
        made.follows, made.shelves = (Followers(_part(arrays, name)) for name in ("follows", "shelves"))
        made.crossings = Followers(_part(arrays, "crossings") or None, itself=True)  # versions before it have none
        made.neighbours = Neighbours.of(_part(arrays, "neighbours"))
        if "endings" in state:  # versions before it have none
            made.endings = Endings.read(state["endings"], _part(arrays, "endings"))
        made._place = np.full(len(made.item), -1, np.int32)
        made.arrivals = Arrivals((word, int(made.category[word])) for word in state.get("arrivals", ()))
        return made

    def state(self) -> dict[str, Any]:
        """Offsets, names and items as plain values; no name of a user is among them."""
        return {
            "seen": [[t, p, o] for (t, p), o in self.seen.items()],
            "names": self.names,
            "items": {k: [v.title, v.category, v.brand, v.price] for k, v in self.items.items()},
            "arrivals": list(self.arrivals),
            "withdrawn": sorted(self.withdrawn),
            "endings": self.endings.state()[0],
        }

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The counts."""
        parts = {
            "follows": self.follows.state(),
            "shelves": self.shelves.state(),
            "crossings": self.crossings.state(),
            "neighbours": self.neighbours.state(),
            "endings": self.endings.state()[1],
        }
        return {
            "item": self.item, "category": self.category, "popular": self.popular, "popular_ms": self.popular_ms,
            "worth_ms": self.worth_ms,
            **{f"{part}.{name}": value for part, arrays in parts.items() for name, value in arrays.items()},
        }  # fmt: skip


def _part(arrays: dict[str, NDArray[Any]], name: str) -> dict[str, NDArray[Any]]:
    return {key[len(name) + 1 :]: value for key, value in arrays.items() if key.startswith(name + ".")}


@numba.njit(cache=True)
def _stand(word, place, found, n):  # type: ignore[no-untyped-def] # pragma: no cover
    if place[word] < 0:
        place[word] = n
        found[n] = word
        return n, n + 1
    return place[word], n


@numba.njit(cache=True)
def _evidence(  # type: ignore[no-untyped-def] # pragma: no cover
    query, shelf, mine, ago, voted, votes, also, top, at_ms, f_size, f_start, f_who, f_count, s_size, s_start, s_who,
    s_count, popular, popular_ms, place, item,
):  # fmt: skip
    most = (len(query) + 1) * FOLLOWERS + len(mine) + len(voted) + len(also) + len(top)
    found, made = np.empty(most, np.int32), np.zeros((most, 6))
    n = 0
    for r in range(len(query)):
        word = query[r]
        if word < len(f_size):
            first, last = f_start[word], f_start[word] + f_size[word]
            total = f_count[first:last].sum() + 5.0
            for j in range(first, last):
                i, n = _stand(f_who[j], place, found, n)
                made[i, 0] += 0.7**r * f_count[j] / total
                if r == 0:
                    made[i, 5] = f_count[j] / total
    if 0 <= shelf < len(s_size):
        first, last = s_start[shelf], s_start[shelf] + s_size[shelf]
        total = s_count[first:last].sum() + 20.0
        for j in range(first, last):
            i, n = _stand(s_who[j], place, found, n)
            made[i, 1] = s_count[j] / total
    for j in range(len(mine)):
        i, n = _stand(mine[j], place, found, n)
        made[i, 2] = 0.8 ** ago[j]
    for j in range(len(voted)):
        i, n = _stand(voted[j], place, found, n)
        made[i, 4] = votes[j]
    for j in range(len(also)):
        i, n = _stand(also[j], place, found, n)
    if n < len(top):
        for j in range(len(top)):
            i, n = _stand(top[j], place, found, n)
    for i in range(n):
        word = found[i]
        place[word] = -1
        made[i, 3] = popular[word] * 0.5 ** (max(0, at_ms - popular_ms[word]) / HALF_LIFE_MS)
    if len(mine):  # ago 0 stands first: the current item is no candidate
        for i in range(n):
            if found[i] == mine[0]:
                n -= 1
                found[i], made[i] = found[n], made[n]
                break
    left = 0
    for i in range(n):  # what is withdrawn is still counted as it was
        if item[found[i]]:
            if left < i:
                found[left], made[left] = found[i], made[i]
            left += 1
    return found[:left], made[:left]
