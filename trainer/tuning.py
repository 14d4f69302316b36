"""The language model itself, tuned on what people engaged with next, within a time budget."""

from __future__ import annotations

import math
import os
import random
import shutil
import time
import uuid
from pathlib import Path
from typing import Any, Literal

import msgspec

from featurestore import window
from featurestore.events import Row
from trainer import contrastive, encoders, registry, warmup
from trainer.knobs import TuneSettings
from trainer.texts import row_text

TOLD = "nextclick.json"  # beside the weights: how they came about


class Lessons(msgspec.Struct, frozen=True, kw_only=True):
    """Pairs of (text at hand, text of the next item) and unlabelled texts; nothing in them is newer than `until_ms`."""

    new: list[tuple[str, str]]  # oldest first
    old: list[tuple[str, str]] = []  # of before the last tuning
    texts: list[str] = []
    until_ms: int = -1


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """How a tuned encoder came about, `nextclick.json` beside its weights."""

    base: str  # digest of the encoder that it began from
    until_ms: int  # no label above this instant was learnt
    settings: TuneSettings
    pairs: int
    steps: int = 0
    stopped: Literal["done", "budget", "early"] = "done"
    losses: list[tuple[int, float]] = []  # step → training loss
    masked: list[float] = []  # losses of the warm-up
    validation: list[tuple[int, float]] = []  # step → loss on the newest pairs, of which the best was kept
    seconds: float = 0.0


def tune(encoder: str, lessons: Lessons, settings: TuneSettings, out: Path) -> Path:
    """Pull what was looked at and what was engaged with next together; returns the new encoder's folder.

    The folder below `out` is named by the digest of its weights, is loadable by `AutoModel.from_pretrained`, and
    appears whole or not at all. Raises ValueError where nothing can be learnt, with the reason.
    """
    import torch

    if settings.mode == "frozen":
        return Path(encoder)
    if len(lessons.new) < 2:
        raise ValueError(f"{len(lessons.new)} pairs of different texts are too few to tune on: wait for more events")
    torch.manual_seed(settings.seed)
    begun, rng = time.monotonic(), random.Random(settings.seed)
    tokenizer, base = encoders.load(encoder)
    half = encoders.half_is_faster(tokenizer, base)
    held = round(settings.validation * len(lessons.new))
    held = held if held >= settings.batch else 0
    new, held_out = lessons.new[: len(lessons.new) - held], lessons.new[len(lessons.new) - held :]
    a_pass = math.ceil(contrastive.pass_size(new, lessons.old, settings) / settings.batch)
    steps = max(1, min(settings.max_steps, settings.epochs * a_pass))
    model = encoders.trainable(base, settings, steps).train()
    until = begun + settings.budget_ms / 1000
    masked_until = begun + settings.masked * settings.budget_ms / 1000
    masked = warmup.warm_up(base, tokenizer, lessons.texts, settings, masked_until, half, rng)
    ids = _ids(tokenizer, [*new, *lessons.old, *held_out])
    runner = contrastive.Runner(model, tokenizer, ids, settings, half, steps, until)
    told = runner.run(lambda: contrastive.batches(new, lessons.old, ids, settings, rng), held_out)
    whole = model.merge_and_unload() if settings.mode in encoders.ADAPTERS else model
    said = Told(
        base=encoders.digest(encoder), until_ms=lessons.until_ms, settings=settings, pairs=len(lessons.new),
        masked=masked, seconds=round(time.monotonic() - begun, 1), **told,
    )  # fmt: skip
    return save(whole.to("cpu"), tokenizer, said, out)


def lessons(made: window.Examples, rows: list[Row], cuts: window.Ints, encoder: str | None) -> Lessons:
    """What these cuts and what came of them teach; what `encoder` was tuned on before is replayed, not new."""
    before = told(Path(encoder)) if encoder is not None else None
    known_ms = before.until_ms if before is not None else -1
    pairs: dict[bool, list[tuple[str, str]]] = {False: [], True: []}
    until_ms = -1
    for i in cuts[made.next_row[cuts] >= 0]:
        follower = rows[made.next_row[i]]
        here, there = row_text(rows[made.row[i]]), row_text(follower)
        if here != there:
            pairs[bool(made.at_ms[i] > known_ms)].append((here, there))
            until_ms = max(until_ms, follower.event.ts_ms)
    said = dict.fromkeys(row_text(row) for row in rows if row.event.ts_ms <= until_ms)
    return Lessons(new=pairs[True], old=pairs[False], texts=list(said), until_ms=until_ms)


def told(encoder: Path) -> Told | None:
    """How an encoder was tuned; None where it was not."""
    file = encoder / TOLD
    return msgspec.json.decode(file.read_bytes(), type=Told) if file.is_file() else None


def _ids(tokenizer: Any, pairs: list[tuple[str, str]]) -> dict[str, list[int]]:
    said = list(dict.fromkeys(text for pair in pairs for text in pair))
    return dict(zip(said, encoders.tokens(tokenizer, said), strict=True))


def save(model: Any, tokenizer: Any, said: Told, out: Path) -> Path:
    """A folder below `out` that is named by its digest and appears whole."""
    temporary = out / f".{uuid.uuid4().hex}.{os.getpid()}.tmp"
    temporary.mkdir(parents=True)
    model.save_pretrained(temporary, safe_serialization=True)
    tokenizer.save_pretrained(temporary)
    (temporary / TOLD).write_bytes(msgspec.json.format(msgspec.json.encode(said)))
    path = out / (name := encoders.digest(str(temporary)))
    (temporary / encoders.DIGEST).write_text(name, encoding="ascii")
    if path.exists():
        shutil.rmtree(temporary)
    else:
        registry.settle(temporary, path)
    return path
