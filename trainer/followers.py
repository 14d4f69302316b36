"""What comes after what: each word with those most counted after it."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from trainer.ragged import Floats, Ints, Ragged, roomy

FOLLOWERS = 100  # kept of each word, the most counted


class Followers:
    """Word → those most counted after it, `FOLLOWERS` of them (Space-Saving: Metwally et al., ICDT 2005)."""

    def __init__(self, state: dict[str, NDArray[Any]] | None = None, *, itself: bool = False) -> None:
        self.itself = itself  # whether a word may follow itself
        self.size: Ints = np.zeros(0, np.int32) if state is None else state["size"].copy()
        self._rows = Ragged(FOLLOWERS, np.int32, np.float32)  # which, and how often
        if state is not None:
            self._rows = Ragged.of(FOLLOWERS, self.size, state["who"], state["count"])

    def add(self, words: Ints, item: int, weights: Floats) -> None:
        """Count an item after each of some words [n], with its weight [n]."""
        done = 0
        while (done := _add(done, words, item, weights, self.itself, self._rows.room, *self.arrays)) < len(words):
            word = int(words[done])
            if word >= len(self.size):
                self.size = roomy(self.size, word)
                self._rows.reach(word)
            self._rows.make_room(word, int(self.size[word]) + 1)

    def after(self, word: int) -> tuple[Ints, Floats]:
        """What was counted after a word, and how often."""
        size, start, who, count = self.arrays
        if not 0 <= word < len(size):
            return who[:0].copy(), count[:0].copy()
        first, last = start[word], start[word] + size[word]
        return who[first:last].copy(), count[first:last].copy()

    def drop(self, gone: NDArray[np.bool_]) -> None:
        """Forget words, as that which is followed and as what follows."""
        _drop(gone, *self.arrays)
        self._rows.drop(np.flatnonzero(gone).tolist())

    @property
    def arrays(self) -> tuple[Ints, Ints, Ints, Floats]:
        """How many each word has, from where on they stand, which, and their counts."""
        who, count = self._rows.columns
        return self.size, self._rows.start, who, count

    def state(self) -> dict[str, NDArray[Any]]:
        """What `__init__` reads back."""
        who, count = (column[self._rows.places(self.size)] for column in self._rows.columns)
        return {"size": self.size, "who": who, "count": count}


@numba.njit(cache=True)
def _add(  # type: ignore[no-untyped-def] # pragma: no cover
    done, words, item, weights, itself, room, size, start, who, count
):
    """From a place on; returns the first one whose word has no room for it."""
    for k in range(done, len(words)):
        word = words[k]
        if word == item and not itself:
            continue
        if word >= len(size):
            return k
        first, n = start[word], size[word]
        last, least = first + n, first
        here = first
        while here < last and who[here] != item:
            if count[here] < count[least]:
                least = here
            here += 1
        if here == last and n == FOLLOWERS:
            here = least
        elif here == last:
            if n == room[word]:
                return k
            size[word] += 1
        who[here] = item
        count[here] += weights[k]
    return len(words)


@numba.njit(cache=True)
def _drop(gone, size, start, who, count):  # type: ignore[no-untyped-def] # pragma: no cover
    for word in range(len(size)):
        first = start[word]
        n = 0
        for j in range(first, first + size[word]):
            if not (word < len(gone) and gone[word]) and not gone[who[j]]:
                who[first + n], count[first + n] = who[j], count[j]
                n += 1
        count[first + n : first + size[word]] = 0.0
        size[word] = n
