"""Items of the catalogue that nobody has touched yet: no count can propose them, so the newest are by what they are."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

import numpy as np

from trainer.ragged import Ints

NEWEST = 300  # of all: candidates by their texts are sought among these
SHELF = 20  # of one category


class Arrivals:
    """Words of such items in the order in which they were told, and the same by category."""

    def __init__(self, told: Iterable[tuple[int, int]] = ()) -> None:
        self._shelf: dict[int, int] = {}  # item → its category, −1: not told
        self._on: dict[int, dict[int, None]] = {}
        self._newest: Ints | None = None
        for word, shelf in told:
            self.put(word, shelf)

    def __len__(self) -> int:
        return len(self._shelf)

    def __iter__(self) -> Iterator[int]:
        return iter(self._shelf)

    def put(self, word: int, shelf: int) -> None:
        """An item was told, in this category (−1: in none); the newest stands last."""
        self.drop(word)
        self._shelf[word] = shelf
        self._on.setdefault(shelf, {})[word] = None
        self._newest = None

    def drop(self, word: int) -> None:
        """Somebody touched it, or it is withdrawn."""
        shelf = self._shelf.pop(word, None)
        if shelf is not None:
            del self._on[shelf][word]
            if not self._on[shelf]:
                del self._on[shelf]
            self._newest = None

    @property
    def newest(self) -> Ints:
        """The last `NEWEST` of all, the newest first."""
        if self._newest is None:
            self._newest = _last(self._shelf, NEWEST)
        return self._newest

    def on(self, shelf: int) -> Ints:
        """The last `SHELF` of a category, the newest first."""
        return _last(self._on.get(shelf, {}), SHELF)


def _last(words: dict[int, None] | dict[int, int], n: int) -> Ints:
    return np.array(list(itertools.islice(reversed(words), n)), np.int32)
