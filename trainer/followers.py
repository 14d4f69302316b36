"""What comes after what: each word with the items most counted after it."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from trainer.neighbours import Floats, Ints, roomy

FOLLOWERS = 100  # kept of each word, the most counted


class Followers:
    """Word → the items most counted after it, `FOLLOWERS` of them (Space-Saving: Metwally et al., ICDT 2005)."""

    def __init__(self, state: dict[str, NDArray[Any]] | None = None) -> None:
        size: Ints = np.zeros(0, np.int32) if state is None else state["size"]
        self.size = size.copy()
        self.who: Ints = np.zeros((len(size), FOLLOWERS), np.int32)
        self.count: Floats = np.zeros((len(size), FOLLOWERS), np.float32)
        if state is not None:
            held = np.arange(FOLLOWERS) < size[:, None]
            self.who[held], self.count[held] = state["who"], state["count"]

    def add(self, word: int, item: int, weight: float) -> None:
        """Count an item after a word."""
        if word >= len(self.size):
            self.size, self.who, self.count = (roomy(a, word) for a in (self.size, self.who, self.count))
        _add(word, item, weight, self.size, self.who, self.count)

    def drop(self, gone: NDArray[np.bool_]) -> None:
        """Forget words, as that which is followed and as what follows."""
        _drop(gone, self.size, self.who, self.count)

    @property
    def arrays(self) -> tuple[Ints, Ints, Floats]:
        """How many each word has, which, and their counts."""
        return self.size, self.who, self.count

    def state(self) -> dict[str, NDArray[Any]]:
        """What `__init__` reads back."""
        held = np.arange(FOLLOWERS) < self.size[:, None]
        return {"size": self.size, "who": self.who[held], "count": self.count[held]}


@numba.njit(cache=True)
def _add(word, item, weight, size, who, count):  # type: ignore[no-untyped-def] # pragma: no cover
    least = 0
    for j in range(size[word]):
        if who[word, j] == item:
            count[word, j] += weight
            return
        if count[word, j] < count[word, least]:
            least = j
    if size[word] < FOLLOWERS:
        least = size[word]
        size[word] += 1
    who[word, least] = item
    count[word, least] += weight


@numba.njit(cache=True)
def _drop(gone, size, who, count):  # type: ignore[no-untyped-def] # pragma: no cover
    for word in range(len(size)):
        n = 0
        for j in range(size[word]):
            if not (word < len(gone) and gone[word]) and not gone[who[word, j]]:
                who[word, n], count[word, n] = who[word, j], count[word, j]
                n += 1
        count[word, n : size[word]] = 0.0
        size[word] = n
