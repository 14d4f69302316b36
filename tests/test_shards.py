"""Vectors of texts: bounded in memory, on the disk for as long as somebody asks for them, safe beside other readers."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trainer import encoders, registry, shards, texts

DAY_MS = 86_400_000
HELD_BYTES = 4 * encoders.HASHED_DIM + shards.BESIDE


class Counted(texts.Texts):
    """Texts whose encoder is hashed n-grams, with a count of what it embedded."""

    def __init__(self, shared: Path, writer: str | None) -> None:
        super().__init__("made up", shared, writer)
        self.embedded: list[str] = []

    dim = encoders.HASHED_DIM

    def _embedded(self, wanted: list[str]) -> Any:
        self.embedded += wanted
        return texts._hashed(wanted)


@pytest.fixture
def hold(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Room for so many vectors."""
    return lambda n: monkeypatch.setattr(shards, "HELD_MB", n * HELD_BYTES / 2**20)


def aged(folder: Path, days: float) -> list[Path]:
    """Make the shards there as old as that."""
    found = sorted(folder.rglob("*.parquet"))
    for path in found:
        os.utime(path, times=(path.stat().st_atime, time.time() - days * 86_400))
    return found


def right(words: texts.Texts, wanted: Sequence[str]) -> bool:
    """Whether each text has its own vector."""
    return np.array_equal(words.vectors(wanted), texts._hashed(list(wanted)))


def test_memory_holds_the_most_lately_used(hold: Callable[[int], None], tmp_path: Path) -> None:
    """Room for ten: of a hundred texts the last ones stay, and the one that is always asked for."""
    hold(10)
    words = texts.Texts(None, tmp_path, "w")
    for n in range(100):
        assert right(words, ["always", f"text {n}"])
        assert len(words.known) <= 10
    assert set(words.known) == {"always", *(f"text {n}" for n in range(91, 100))}
    assert right(words, [f"text {n}" for n in range(50)])  # more than there is room for in one call


def test_beyond_the_least_what_is_idle_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what nobody asked for in `IDLE_MS` only `LEAST_MB` stay; what came before the time was told counts as new."""
    monkeypatch.setattr(shards, "LEAST_MB", 5 * HELD_BYTES / 2**20)
    held, vector = shards.Held(), np.ones(encoders.HASHED_DIM, np.float32)
    held.put([f"before {n}" for n in range(20)], [vector] * 20)
    for minute in range(601):
        held.tell(DAY_MS + minute * 60_000)
        held.put([f"at {minute}"], [vector])
        held.those(["before 7"])
        assert minute > 60 or len(held) == 21 + minute  # told for the first time, nothing has been idle for an hour
    assert set(held) == {"before 7", *(f"at {minute}" for minute in range(540, 601))}
    held.tell(2 * DAY_MS)
    held.put(["new"], [vector])
    assert len(held) == 5


def test_what_is_held_is_no_view_of_its_batch() -> None:
    """Else one vector would keep the thousands that came with it."""
    held, batch = shards.Held(), np.ones((64, 8), np.float32)
    held.put([str(n) for n in range(64)], batch)
    assert all(vector.base is None for vector in held.those(list(held)).values())


def test_a_text_that_memory_let_go_is_read_from_its_shard(hold: Callable[[int], None], tmp_path: Path) -> None:
    """In the process that wrote it and in one that came later; nothing is embedded twice or written twice."""
    hold(10)
    said = [f"text {n}" for n in range(60)]
    first = Counted(tmp_path, "a")
    for text in said:
        first.vectors([text])
    assert right(first, said)  # not yet written
    first.save()
    second = Counted(tmp_path, "b")
    assert len(second.known) <= 10
    for words in (first, second):
        assert right(words, said[::-1])
        words.save()
    assert (len(first.embedded), second.embedded) == (60, [])
    assert len(list(tmp_path.rglob("*.parquet"))) == 1


def test_shards_go_when_nobody_asked_for_a_month(tmp_path: Path) -> None:
    """A text that was asked for in the second half of a shard's time is in a new one; the others are gone."""
    out, now_ms = registry.Registry(tmp_path), int(time.time() * 1000)
    first = Counted(tmp_path, "a")
    first.vectors(["asked for", "never again"])
    first.save()
    (old,) = aged(tmp_path, 20)
    second = Counted(tmp_path, "a")
    second.vectors(["asked for"])
    second.save()
    assert second.embedded == []
    assert out.sweep({first.digest}, 0, now_ms) == ()
    aged(old, 0)
    os.utime(old, times=(0, time.time() - 31 * 86_400))
    assert out.sweep({first.digest}, 0, now_ms) == (f"vectors/{first.digest}/{old.name}",)
    third = Counted(tmp_path, "c")
    assert right(third, ["asked for", "never again"])
    assert third.embedded == ["never again"]
    assert right(second, ["never again"])


def test_an_old_text_is_copied_once(tmp_path: Path) -> None:
    """Whoever finds it written again, by itself or by another, writes no more."""
    first = Counted(tmp_path, "a")
    first.vectors(["asked for"])
    first.save()
    aged(tmp_path, 20)
    for writer in ("b", "b", "c"):
        words = Counted(tmp_path, writer)
        for _ in range(2):
            words.vectors(["asked for"])
            words.save()
    assert len(list(tmp_path.rglob("*.parquet"))) == 2


def test_readers_survive_shards_that_vanish(hold: Callable[[int], None], tmp_path: Path) -> None:
    """Between the listing and the reading, or after what was read was let go: the texts are embedded again."""
    hold(2)
    first = Counted(tmp_path, "a")
    first.vectors(said := [f"text {n}" for n in range(20)])
    first.save()
    reader = Counted(tmp_path, "b")
    lost = tmp_path / "vectors" / first.digest / "z-0.parquet"
    lost.symlink_to("nowhere")  # listed, and not there
    for path in set(tmp_path.rglob("*.parquet")) - {lost}:
        path.unlink()
    assert right(reader, said)
    assert set(reader.embedded) >= set(said[:18])


def test_a_writer_gives_no_name_twice(tmp_path: Path) -> None:
    """After its first shard was pruned the next one is new to everybody."""
    words, other = Counted(tmp_path, "a"), Counted(tmp_path, "b")
    names = set()
    for n in range(3):
        words.vectors([f"text {n}"])
        words.save()
        assert right(other, [f"text {n}"])
        (path,) = tmp_path.rglob("*.parquet")
        names.add(path.name)
        path.unlink()
    assert len(names) == 3
    assert other.embedded == []


def test_half_written_shards_of_the_killed_are_swept(tmp_path: Path) -> None:
    """A temporary file stays as long as its writer may live."""
    words = Counted(tmp_path, "a")
    words.vectors(["text"])
    words.save()
    left = tmp_path / "vectors" / words.digest / "a-1.9.tmp"
    left.write_bytes(b"half")
    now_ms = int(left.stat().st_mtime * 1000)
    assert shards.prune(left.parent, DAY_MS, now_ms + DAY_MS // 2) == []
    assert shards.prune(left.parent, DAY_MS, now_ms + 2 * DAY_MS) == [left]


def test_without_a_writer_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who only looks reads what others wrote, embeds what is missing and leaves no file."""
    monkeypatch.setattr(texts, "SHARD_TEXTS", 2)
    other = Counted(tmp_path, "w")
    other.vectors(["a"])
    other.save()
    before = sorted(tmp_path.rglob("*"))
    looking = Counted(tmp_path, None)
    assert right(looking, ["a", "b", "c", "d"])
    looking.save()
    assert (looking.embedded, sorted(tmp_path.rglob("*"))) == (["b", "c", "d"], before)
