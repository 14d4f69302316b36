"""Vectors of texts: in memory up to a size, all of them on the disk in shards that the processes share."""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from featurestore import disk

Vectors = NDArray[np.float32]
HELD_MB = 400  # of texts with their vectors in a process at most, some 200,000 of width 384
LEAST_MB = 64  # of them stay however long ago they were asked for
IDLE_MS = 3_600_000  # event time since a text was asked for: of more than those only what is still in use is held
BESIDE = 512  # bytes of a text, its place and its array, beside the numbers
KEEP_MS = 30 * 86_400_000  # wall clock: a shard is read for so long; what is asked for in its second half is copied


class Held:
    """Text → vector, the most lately used; threads may share it.

    `HELD_MB` of them at most; of more than `LEAST_MB` only those that were asked for within `IDLE_MS`: what open
    sessions and the items of a version need, not whatever was said once. Where nobody tells the time none is idle.
    """

    def __init__(self) -> None:
        self._made: OrderedDict[str, tuple[Vectors, int]] = OrderedDict()  # and when it was asked for
        self._now_ms = self._told_ms = 0  # event time, and as it was told first
        self._bytes, self._lock = 0, threading.Lock()

    def tell(self, now_ms: int) -> None:
        """How far event time is."""
        self._told_ms, self._now_ms = self._told_ms or now_ms, now_ms

    def put(self, texts: Iterable[str], vectors: Iterable[Vectors]) -> None:
        """Hold these, and let go what was not asked for the longest; a copy of each row, no view of its batch."""
        with self._lock:
            for text, vector in zip(texts, vectors, strict=True):
                if text not in self._made:
                    self._made[text] = vector.copy(), self._now_ms
                    self._bytes += vector.nbytes + BESIDE
            while self._bytes > (LEAST_MB if self._idle() else HELD_MB) * 2**20:
                self._bytes -= self._made.popitem(last=False)[1][0].nbytes + BESIDE

    def _idle(self) -> bool:
        """Whether the text that was not asked for the longest is needed no more."""
        asked_ms = next(iter(self._made.values()), (None, 0))[1]
        return max(asked_ms, self._told_ms) < self._now_ms - IDLE_MS

    def those(self, wanted: Iterable[str]) -> dict[str, Vectors]:
        """Of these the ones that are held; they count as used now."""
        found: dict[str, Vectors] = {}
        with self._lock:
            for text in wanted:
                if (held := self._made.get(text)) is not None:
                    found[text] = held[0]
                    self._made[text] = held[0], self._now_ms
                    self._made.move_to_end(text)
        return found

    def __len__(self) -> int:
        return len(self._made)

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._made))

    def __contains__(self, text: str) -> bool:
        return text in self._made


class Shards:
    """The vectors of one encoder below the shared folder; each process writes files of its own and reads all.

    Which shard has which text is known by eight bytes a text. A shard goes `KEEP_MS` after it was written (`prune`),
    so texts that are still asked for in the second half of that time are `old`: who finds one writes it again.
    """

    def __init__(self, folder: Path, writer: str) -> None:
        self.folder, self.writer = folder, writer
        self.old: set[str] = set()
        self._lock = threading.Lock()
        self._read: list[Path] = []
        self._index = np.zeros(0, np.uint64), np.zeros(0, np.int32)  # of each text: its hash, the shard it is in

    def news(self) -> Iterator[tuple[list[str], Vectors]]:
        """Texts and vectors of each shard that was not read yet, the oldest first."""
        dated = []
        for path in set(self.folder.glob("*.parquet")) - set(self._read):
            try:
                dated.append((path.stat().st_mtime, path))
            except FileNotFoundError:  # pruned meanwhile
                continue
        for written_s, path in sorted(dated):
            made = _table(path)
            if made is None:
                continue
            texts = made[0]
            if (time.time() - written_s) * 1000 > KEEP_MS / 2:
                self.old.update(texts)
            else:
                self.old.difference_update(texts)
            self._note(path, texts)
            yield made

    def find(self, wanted: list[str]) -> dict[str, Vectors]:
        """Of these the ones that a shard has which was read before."""
        hashes, shards = self._index
        here = np.isin(hashes, _hashes(wanted))
        asked, found = set(wanted), dict[str, Vectors]()
        for number in np.unique(shards[here]).tolist():
            texts, vectors = _table(self._read[number]) or ([], np.zeros((0, 0), np.float32))
            found.update((text, vectors[i].copy()) for i, text in enumerate(texts) if text in asked)
        return found

    def write(self, made: Mapping[str, Vectors]) -> None:
        """One more shard."""
        path = self.folder / f"{self.writer}-{time.time_ns()}.parquet"
        rows = np.stack(list(made.values()))
        values = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1])
        with disk.replacing(path, self.writer) as temporary:
            pq.write_table(pa.table({"text": list(made), "vector": values}), temporary)
        self._note(path, list(made))

    def _note(self, path: Path, texts: list[str]) -> None:
        with self._lock:
            hashes, shards = self._index
            number = np.full(len(texts), len(self._read), np.int32)
            self._read.append(path)
            self._index = np.concatenate([hashes, _hashes(texts)]), np.concatenate([shards, number])


def prune(folder: Path, left_ms: int, now_ms: int) -> list[Path]:
    """Remove an encoder's shards that are `KEEP_MS` old, and what a killed writer left `left_ms` ago.

    Whoever reads one at that moment has it open or does not find it, and embeds anew what it misses.
    """
    gone = []
    for path in sorted([*folder.glob("*.parquet"), *folder.glob("*.tmp")]):
        try:
            if now_ms - path.stat().st_mtime * 1000 > (left_ms if path.suffix == ".tmp" else KEEP_MS):
                path.unlink()
                gone.append(path)
        except FileNotFoundError:  # another one was first
            continue
    return gone


def _table(path: Path) -> tuple[list[str], Vectors] | None:
    """Texts and vectors of a shard, None where it was pruned."""
    try:
        table = pq.read_table(path)
    except FileNotFoundError:
        return None
    flat = table["vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return table["text"].to_pylist(), flat.astype(np.float32, copy=False).reshape(len(table), -1)


def _hashes(texts: Iterable[str]) -> NDArray[np.uint64]:
    joined = b"".join(hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts)
    return np.frombuffer(joined, np.uint64)
