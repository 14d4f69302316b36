"""Rows that grow apart: what is in them stays, and what they leave is used again."""

from __future__ import annotations

import random

import numpy as np

from trainer.ragged import LEAST, Ragged


def test_rows_keep_their_numbers_while_all_of_them_grow_and_go() -> None:
    """Against plain lists, over thousands of additions and removals; zeros are what a new place holds."""
    rng, made = random.Random(8), Ragged(50, np.int32, np.float32)
    held: dict[int, list[int]] = {}
    for n in range(20_000):
        row = rng.randrange(300)
        mine = held.setdefault(row, [])
        if rng.random() < 0.01:
            made.drop([row])
            del held[row]
        elif len(mine) < 50:
            made.make_room(row, len(mine) + 1)
            place = made.start[row] + len(mine)
            assert made.columns[1][place] == 0
            made.columns[0][place], made.columns[1][place] = n, n / 2
            mine.append(n)
    size = np.array([len(held.get(row, ())) for row in range(300)], np.int32)
    wanted = [n for row in range(300) for n in held.get(row, ())]
    assert made.columns[0][made.places(size)].tolist() == wanted
    again = Ragged.of(50, size, *(column[made.places(size)] for column in made.columns))
    assert again.columns[1][again.places(size)].tolist() == [np.float32(n / 2) for n in wanted]


def test_what_rows_leave_is_the_next_ones() -> None:
    """A thousand rows of which one is there at a time need the room of one."""
    made = Ragged(100, np.int32)
    for row in range(1_000):
        for wanted in (1, 5, 9):
            made.make_room(row, wanted)
        made.drop([row])
    assert len(made.columns[0]) <= 2 * (LEAST + 8 + 16) + 64
