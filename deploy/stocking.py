"""The catalogue on its way into a worker's model, into the shared folder, and what of it could not be read."""

from __future__ import annotations

import asyncio
import csv
import itertools
import time
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import orjson
import structlog

from deploy import replay
from featurestore import disk
from featurestore.catalogue import FILE, Item
from streams import catalogue, items
from streams.bad import BadEvent
from trainer import predictor, texts

log = structlog.get_logger()

AT_ONCE = 500  # items whose texts are encoded, and which the scorer then takes, between two batches
TOLD = "items-refused.json"  # by log and partition, up to which offset bad records of the catalogue were told
WRITE_S = 5.0  # between two files for the trainer


class Outlet(Protocol):
    """Where dead letters go."""

    def dead_letter(self, dead: Any) -> Any: ...


class Stock:
    """What was told and is not in the model yet: encoded a little at a time, off the event loop."""

    def __init__(self, source: catalogue.Catalogue, shared: Path, log_id: str) -> None:
        self.source, self.shared, self.log_id = source, shared, log_id
        self.waiting: deque[Item] = deque()
        self.encoded: dict[str, Item] = {}  # the newest of each whose text has its vector
        self.model: predictor.Predictor | None = None  # the one that knows all but what waits
        self.wrote_s, self.unwritten = 0.0, False

    def told(self) -> list[Item]:
        """All whose text was encoded: what a version that is being loaded takes without waiting for the others."""
        return list(self.encoded.copy().values())

    async def step(self, model: predictor.Predictor, on_scorer: Any) -> None:
        """Encode and stock some of what waits; `on_scorer` runs a call on the thread that scores."""
        fresh = self.source.changed()
        self.unwritten |= bool(fresh)
        if model is not self.model:  # it took what was encoded when it was loaded
            self.model, fresh = model, [*self.told(), *fresh]
        self.waiting.extend(fresh)
        end = time.monotonic() + 1
        while self.waiting and time.monotonic() < end:
            some = list(itertools.islice(self.waiting, AT_ONCE))  # they wait until the model has them
            await asyncio.to_thread(encode, model.texts, some)
            await on_scorer(model.stock, some)
            self.encoded |= {item.item_id: item for item in some}
            for _ in some:
                self.waiting.popleft()
        if not self.waiting:
            await asyncio.to_thread(model.texts.save)

    async def keep(self, outlet: Outlet) -> None:
        """What one worker does for all: dead letters of the catalogue, and the file that retrains take.

        A kill between the acknowledgement and the note tells a dead letter twice.
        """
        for partition, offset, dead in self.source.untold(self._noted()):
            await (await outlet.dead_letter(dead))
            await asyncio.to_thread(self._note, partition, offset + 1)
        if self.unwritten and time.monotonic() - self.wrote_s > WRITE_S:
            self.unwritten, self.wrote_s = False, time.monotonic()
            await asyncio.to_thread(write, self.shared / FILE, self.source.items.copy().values())

    def forget_told(self) -> None:
        """On the other workers: let go what the one has told."""
        if self.source.refused:
            self.source.untold(self._noted())

    def status(self) -> dict[str, int]:
        """For the beat."""
        known = list(self.source.items.copy().values())
        return {"items": sum(item.available for item in known), "withdrawn": sum(not item.available for item in known),
                "waiting": self.source.unasked() + len(self.waiting), "refused": self.source.bad}  # fmt: skip

    def _noted(self) -> dict[int, int]:
        return {int(p): offset for p, offset in _json(self.shared / TOLD).get(self.log_id, {}).items()}

    def _note(self, partition: int, upto: int) -> None:
        said = _json(self.shared / TOLD)
        said[self.log_id] = said.get(self.log_id, {}) | {str(partition): upto}
        disk.replace(self.shared / TOLD, [orjson.dumps(said)])


def encode(words: texts.Texts, some: list[Item]) -> None:
    """Have the vectors of these items' texts."""
    words.vectors([predictor.item_text(item.item_id, item) for item in some if item.available])


def write(file: Path, known: Iterable[Item]) -> None:
    """The catalogue as a file, by item: the same items make the same bytes."""
    ordered = sorted(known, key=lambda item: item.item_id)
    disk.replace(file, (items.encode(item) + b"\n" for item in ordered))


def read(file: Path) -> list[Item]:
    """What `write` wrote, or a shop's own file; by the time they were told. Raises `UnreadableFile`."""
    made = []
    for number, raw in lines(file):
        try:
            made.append(items.told(raw))
        except BadEvent as error:
            raise replay.UnreadableFile(f"{file}, line {number + 1}: {error}") from error
    return sorted(made, key=lambda item: item.told_ms)


def shared(folder: Path) -> list[Item]:
    """The catalogue as the workers of this folder know it; empty where nothing was told."""
    return read(folder / FILE) if (folder / FILE).is_file() else []


def lines(file: Path) -> Iterator[tuple[int, bytes]]:
    """One JSON object an item with its place; a CSV file's rows by its header, empty cells left out."""
    source = replay.raw_lines(file, "give one JSON object an item a line, or a CSV file whose header names item_id")
    for number, first in source:
        if first.lstrip().startswith((b"{", b"[")):
            yield from itertools.chain([(number, first)], source)
            return
        names = next(csv.reader([first.decode("utf-8-sig", "replace")]), [])
        if "item_id" not in names:
            raise replay.UnreadableFile(f"{file}: neither JSON nor a CSV header with item_id: {first[:80]!r}")
        for place, raw in source:
            cells = zip(names, next(csv.reader([raw.decode("utf-8", "replace")]), []), strict=False)
            yield place, orjson.dumps({name: _cell(name, cell) for name, cell in cells if cell})


def _cell(name: str, text: str) -> Any:
    if name == "available" and text.lower() in ("true", "false", "1", "0", "yes", "no"):
        return text.lower() in ("true", "1", "yes")
    try:
        return {"price": float, "ts": int}.get(name, str)(text)
    except ValueError:
        return text  # said with the field's name where it is read


def _json(file: Path) -> dict[str, Any]:
    try:
        return dict(orjson.loads(file.read_bytes()))
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, OSError) as error:
        log.warning("A note cannot be read; what it held is told again.", file=str(file), error=str(error))
        return {}
