"""Given items ranked for a person: by a worker over HTTP, or from the shared folder without one."""

from __future__ import annotations

import time
from typing import Any

import msgspec

from deploy import settings as dials
from deploy import stocking
from featurestore import cover, lake, sessions
from featurestore.events import Row, Session
from streams import ranking, score
from trainer import encoders, predictor, registry, texts
from trainer import rank as ranks

ANSWER_S = 10.0  # after which a request hears that the worker is busy


class Unrankable(ValueError):
    """What was asked cannot be ranked; the message names the field and the remedy."""


class _Asked(msgspec.Struct, kw_only=True):
    user_id: str
    candidates: list[str | ranks.Candidate]


def asked(body: bytes) -> tuple[str, list[str | ranks.Candidate]]:
    """A request's person and candidates; raises `Unrankable`."""
    try:
        said = msgspec.json.decode(body, type=_Asked)
    except msgspec.MsgspecError as error:
        raise Unrankable(
            f'{error}: send {{"user_id": "…", "candidates": ["sku-1", {{"title": "…", "category": "…"}}]}}'
        ) from error
    return said.user_id, said.candidates


def answered(
    model: predictor.Predictor, user_id: str, found: list[Session], said: list[str | ranks.Candidate]
) -> dict[str, Any]:
    """The answer to a request; a text that names no known item is read as an item's text. Raises `Unrankable`."""
    if not 0 < len(said) <= ranking.LIMIT:
        raise Unrankable(f"{len(said):,} candidates; send 1 to {ranking.LIMIT:,}")
    known, gone = model.memory.items, model.memory.withdrawn
    candidates = [
        one if isinstance(one, ranks.Candidate)
        else ranks.Candidate(item_id=one) if one in known or one in gone else ranks.Candidate(text=one)
        for one in said
    ]  # fmt: skip
    if empty := [n for n, one in enumerate(candidates) if not one.said and not one.item_id]:
        raise Unrankable(f"candidate {empty[0]} has neither item_id nor a text")
    seen = [one for session in found if (one := score.snapshot(session)) is not None]
    session, trigger = max(seen, key=lambda one: one[1].event.ts_ms, default=(None, None))
    at_ms = trigger.event.ts_ms if trigger is not None else round(time.time() * 1000)
    made = ranks.rank(model, session.rows if session is not None else [], at_ms, candidates)
    told: dict[str, Any] = {"user_id": user_id, "session_id": session.session_id if session is not None else None}
    told |= msgspec.to_builtins(made)
    left = [one for one in told["ranked"] if one["item_id"] not in gone]
    told["ranked"] = [one | {"rank": n} for n, one in enumerate(left, 1)]
    return told | {"withdrawn": sorted({str(one.item_id) for one in candidates if one.item_id in gone})}


def open_sessions(the_lake: lake.Lake, user_id: str, settings: sessions.SessionSettings) -> list[Session]:
    """A person's open sessions as the lake has them: what a worker flushed, a few seconds old at most."""
    return the_lake.read(lambda found: _open(found, user_id, settings))


def _open(found: lake.Cover, user_id: str, settings: sessions.SessionSettings) -> list[Session]:
    by_key: dict[tuple[str, int], list[Row]] = {}
    for row in found.rows(where=f"user_id = {cover.text(user_id)}"):
        by_key.setdefault((row.origin.topic, row.origin.partition), []).append(row)
    latest = max((progress.watermark_ms for progress in found.progress.values()), default=0)
    made: list[Session] = []
    for rows in by_key.values():
        open_ = sessions.OpenSessions()
        sessions.restore(open_, rows, latest, settings)
        made += open_.of(user_id)
    return made


def from_folder(
    settings: dials.Settings, champion: str | None, user_id: str, said: list[str | ranks.Candidate]
) -> dict[str, Any]:
    """The same without a worker: the champion and the lake of the shared folder."""
    the_lake = lake.Lake(settings.shared, "rank")
    path = registry.Registry(settings.shared).verify(champion) if champion is not None else None
    words = texts.Texts(encoders.encoder_of(path, settings.shared, settings.encoder()), settings.shared, "rank")
    cold = predictor.Predictor.cold(words, settings["horizon.next"], settings["session.lateness"])
    model = predictor.Predictor.load(path, words) if path is not None else cold
    seen = {lake.PartitionKey(*key): nxt - 1 for key, nxt in model.memory.seen.items()}
    model.learn(the_lake.read(lambda found: found.rows(), seen))
    model.stock(stocking.shared(settings.shared))
    return answered(model, user_id, open_sessions(the_lake, user_id, settings.sessions()), said)
