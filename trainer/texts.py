"""Event → text → vector: each distinct text is embedded once per encoder and shared by all processes."""

from __future__ import annotations

import functools
import hashlib
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featurestore.events import Row
from trainer import encoders, shards
from trainer.encoders import BATCH, HASHED_DIM

Vectors = shards.Vectors
SHARD_TEXTS = 4_096
NAMED = "\0"  # before an id that stands where no text is known: there is nothing in it to read
NAME_LENGTH = 0.1  # of its vector: a direction to begin with, soon outweighed by what is learnt of it


@functools.lru_cache(16_384)
def item_text(title: str | None, category: str | None, brand: str | None, price: float | None) -> str:
    """An item as the encoder reads it.

    >>> item_text("Red shoe", "Sports > Shoes", None, 19.0)
    'Red shoe | Sports > Shoes | 16-32'
    """
    bucket = f"{2 ** (int(price).bit_length() - 1)}-{2 ** int(price).bit_length()}" if price and price >= 1 else None
    return " | ".join(part for part in (title, category, brand, bucket) if part)


def row_text(row: Row) -> str:
    """What a row says, as the encoder reads it: an item, else the query, else the listing, else what was done."""
    event = row.event
    if event.item_id:
        return item_text(event.title, event.category, event.brand, event.price) or NAMED + event.item_id
    return event.query or event.category or event.type


class Texts:
    """Vectors of texts, unit length, mere names shorter; encoder None means hashed n-grams, which need no weights.

    Without a `writer` it reads what others wrote and writes nothing.
    """

    def __init__(self, encoder: str | Path | None, shared: Path, writer: str | None) -> None:
        self.encoder = None if encoder is None else str(encoder)
        self.digest = encoders.digest(self.encoder)
        self.shared = shared
        self.writer = writer
        self.shards = shards.Shards(shared / "vectors" / self.digest, writer or "")
        self.known = shards.Held()
        self._fresh: dict[str, Vectors] = {}  # to be written
        self._lock = threading.Lock()  # of it: the catalogue's texts are embedded beside those of events
        self._model: Any = None
        self._half = False  # compute in bfloat16
        self._refresh()

    def vectors(self, wanted: Sequence[str]) -> Vectors:
        """One row a text, float32 [n, d]."""
        made = self.known.those(wanted)
        missing = [t for t in dict.fromkeys(wanted) if t not in made]
        if missing:
            made |= self._sought(missing)
            missing = [t for t in missing if t not in made]
            missing.sort(key=len)  # texts of about equal length together: little is padded
        for start in range(0, len(missing), BATCH):
            part = missing[start : start + BATCH]
            rows = _hashed(part) if self.encoder is None else self._embedded(part)
            made.update(zip(part, rows, strict=True))
            self.known.put(part, rows)
        if self.encoder is not None:
            with self._lock:
                again = self.shards.old.intersection(made)
                self.shards.old -= again
                self._fresh.update((t, made[t]) for t in (*missing, *again))
            if len(self._fresh) >= SHARD_TEXTS:
                self.save()
        if not len(wanted):
            return np.zeros((0, self.dim), np.float32)
        return np.concatenate([made[t] for t in wanted]).reshape(len(wanted), -1)

    def _sought(self, wanted: list[str]) -> dict[str, Vectors]:
        """Of texts that are not held those that need no embedding."""
        made = {t: _named(t, self.dim) for t in wanted if t.startswith(NAMED)}
        if self.encoder is not None:
            self._refresh()
            texts = [t for t in wanted if t not in made]
            made |= self.known.those(texts)
            fresh = self._fresh
            made |= {t: fresh[t] for t in texts if t in fresh}
            made |= self.shards.find([t for t in texts if t not in made])
        self.known.put(made, made.values())
        return made

    def broken_up(self) -> str | None:
        """What is wrong where the encoder's tokenizer does not know the script of the texts so far."""
        return None if self.encoder is None else encoders.broken_up(self._loaded()[0], list(self.known))

    def keep(self) -> None:
        """Have the encoder itself in the shared folder."""
        if self.encoder is not None:
            encoders.keep(self.encoder, self.shared)

    def load(self) -> None:
        """Have the encoder at hand, so that the first unknown text does not wait seconds for it."""
        if self.encoder is not None:
            self._loaded()

    @property
    def dim(self) -> int:
        """Width of a vector."""
        if self.encoder is None:
            return HASHED_DIM
        return int(self._loaded()[1].config.hidden_size)

    def save(self) -> None:
        """Write what was embedded since the last call as a shard of this writer, with old texts that were asked for."""
        with self._lock:
            fresh, self._fresh = self._fresh, {}
        if fresh and self.writer is not None:
            self.shards.write(fresh)

    def _refresh(self) -> None:
        for texts, vectors in self.shards.news():
            self.known.put(texts, vectors)

    def _loaded(self) -> tuple[Any, Any]:
        if self._model is None:
            self._model = encoders.load(str(self.encoder))
            self._half = encoders.half_is_faster(*self._model)
        return self._model  # type: ignore[no-any-return]

    def _embedded(self, wanted: list[str]) -> Vectors:
        import torch

        tokenizer, model = self._loaded()
        batch = encoders.padded(tokenizer, encoders.tokens(tokenizer, wanted), model.device.type)
        with torch.inference_mode(), torch.autocast(model.device.type, torch.bfloat16, enabled=self._half):
            return encoders.pooled(model, batch).float().cpu().numpy()  # type: ignore[no-any-return]


class ItemTable:
    """Items with their vectors by column; an item whose text changed keeps its column."""

    def __init__(self, words: Texts, place: Callable[[Vectors, list[str]], Vectors] | None = None) -> None:
        self._texts, self._place = words, place
        self._text, self._placed, self._words = Growing(np.float32), Growing(np.float32), Growing(np.int32)
        self._column = Growing(np.int32)
        self.size = 0

    def update(self, said: dict[str, str], words: list[int]) -> list[int]:
        """Take new items and new texts: name → text, and the word of each; returns their columns."""
        columns = []
        for word in words:
            column = self._column.rows[word] - 1 if word < len(self._column.rows) else -1  # 0: it has none
            if column < 0:
                column, self.size = self.size, self.size + 1
                self._column.put([word], np.array([column + 1]))
            columns.append(int(column))
        made = self._texts.vectors(list(said.values()))
        self._text.put(columns, made)
        self._words.put(columns, np.array(words))
        if self._place is not None:
            self._placed.put(columns, self._place(made, list(said)))
        return columns

    def keep(self, item: NDArray[np.bool_]) -> None:
        """Drop the columns of words that are no items any more [words]; the last columns move into their places."""
        gone = np.flatnonzero(~item[self.words])
        self._column.rows[self.words[gone]] = 0
        left = self.size - len(gone)
        holes, moved = gone[gone < left], np.setdiff1d(np.arange(left, self.size), gone)
        for part in (self._text, self._placed, self._words) if self._place is not None else (self._text, self._words):
            part.rows[holes] = part.rows[moved]
        self._column.rows[self._words.rows[holes]] = holes + 1
        self.size = left

    def columns(self, words: Any) -> NDArray[np.int32]:
        """Of words that are items, [n]."""
        made: NDArray[np.int32] = self._column.rows[words] - 1
        return made

    @property
    def words(self) -> NDArray[np.int32]:
        """Of each column."""
        return self._words.rows[: self.size]

    @property
    def vectors(self) -> Vectors:
        """Of the texts, [n, dim]."""
        return self._text.rows[: self.size] if self.size else np.zeros((0, 0), np.float32)

    @property
    def placed(self) -> Vectors:
        """In the network's space, [n, width]."""
        return self._placed.rows[: self.size] if self.size else np.zeros((0, 0), np.float32)


class Growing:
    """Rows of numbers that are added to without a copy each time."""

    def __init__(self, kind: Any) -> None:
        self.rows: NDArray[Any] = np.zeros(0, kind)

    def put(self, where: list[int], made: NDArray[Any]) -> None:
        """Set these rows."""
        if max(where) >= len(self.rows):
            grown = np.zeros((2 * max(where) + 64, *made.shape[1:]), self.rows.dtype)
            if len(self.rows):
                grown[: len(self.rows)] = self.rows
            self.rows = grown
        self.rows[where] = made


def _named(text: str, dim: int) -> Vectors:
    """A direction of its own, the same in every process."""
    seed = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
    made = np.random.default_rng(seed).normal(size=dim).astype(np.float32)
    return NAME_LENGTH * made / np.linalg.norm(made)


def _hashed(wanted: list[str]) -> Vectors:
    made = np.zeros((len(wanted), HASHED_DIM), np.float32)
    for i, text in enumerate(wanted):
        padded = f" {text.lower()} "
        for start in range(max(1, len(padded) - 2)):
            gram = hashlib.blake2b(padded[start : start + 3].encode(), digest_size=4).digest()
            made[i, int.from_bytes(gram, "big") % HASHED_DIM] += 1.0
    norms: Vectors = np.linalg.norm(made, axis=1, keepdims=True)
    return (made / np.maximum(norms, 1e-9)).astype(np.float32)
