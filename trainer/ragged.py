"""Rows of numbers that grow one by one: each takes about as much memory as it needs, not as much as the longest may."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int32]
Floats = NDArray[np.float32]
LEAST = 4  # numbers that a row has room for to begin with; then twice as many, and again


class Ragged:
    """Row → room for up to `most` numbers in each column, from `start[row]` on; how many are used, its owner knows.

    A row that needs more moves to a longer stretch; the one that it leaves is the next row's of that length.

    >>> made = Ragged(100, np.int32)
    >>> made.make_room(7, 5)
    >>> int(made.room[7]), int(made.room[0])
    (8, 0)
    """

    def __init__(self, most: int, *kinds: Any) -> None:
        self.rooms = [LEAST * 2**k for k in range(most.bit_length()) if LEAST * 2**k < most] + [most]
        self.start, self.room = np.zeros(0, np.int32), np.zeros(0, np.int32)
        self.columns: list[NDArray[Any]] = [np.zeros(0, kind) for kind in kinds]
        self._end = 0
        self._left: dict[int, list[int]] = {room: [] for room in self.rooms}

    def reach(self, row: int) -> None:
        """Have a place for what is known of a row, room or none."""
        if row >= len(self.room):
            self.start, self.room = roomy(self.start, row), roomy(self.room, row)

    def make_room(self, row: int, wanted: int) -> None:
        """Let a row have at least so many numbers; those it has stay."""
        self.reach(row)
        before, had = int(self.start[row]), int(self.room[row])
        if wanted <= had:
            return
        room = next(room for room in self.rooms if room >= wanted)
        start = self._stretch(room)
        for column in self.columns:
            column[start : start + had] = column[before : before + had]
            column[start + had : start + room] = 0
        if had:
            self._left[had].append(before)
        self.start[row], self.room[row] = start, room

    def _stretch(self, room: int) -> int:
        if self._left[room]:
            return self._left[room].pop()
        start, self._end = self._end, self._end + room
        self.columns = [roomy(column, self._end - 1) for column in self.columns]
        return start

    def drop(self, rows: Iterable[int]) -> None:
        """Give back what these rows have."""
        for row in rows:
            if row < len(self.room) and (room := int(self.room[row])):
                self._left[room].append(int(self.start[row]))
                self.start[row] = self.room[row] = 0

    def places(self, size: Ints, rows: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
        """Where the first `size` [n] numbers of these rows [n] (of the first n) stand, row after row."""
        start = self.start[: len(size)] if rows is None else self.start[rows]
        before = np.cumsum(size) - size
        return np.repeat(start - before, size) + np.arange(int(size.sum()))

    @classmethod
    def of(cls, most: int, size: Ints, *columns: NDArray[Any]) -> Ragged:
        """Rows of these lengths, their numbers one after the other."""
        made = cls(most, *(column.dtype for column in columns))
        rooms = np.array([0, *made.rooms], np.int32)
        made.room = rooms[np.searchsorted(rooms, size)]
        made._end = int(made.room.sum())
        made.start = (np.cumsum(made.room) - made.room).astype(np.int32)
        made.columns = [np.zeros(made._end, column.dtype) for column in columns]
        places = made.places(size)
        for column, told in zip(made.columns, columns, strict=True):
            column[places] = told
        return made


def roomy(rows: NDArray[Any], last: int, fill: int = 0) -> NDArray[Any]:
    """The same rows, and at least so many more that there is one of number `last`; zeros are not touched yet."""
    if last < len(rows):
        return rows
    made = np.zeros((max(64, 2 * last + 2), *rows.shape[1:]), rows.dtype)
    made[: len(rows)] = rows
    if fill:
        made[len(rows) :] = fill
    return made
