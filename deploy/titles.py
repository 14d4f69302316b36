"""What items are called, as the shared folder knows it: by the catalogue, else by the lake's newest rows."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

import orjson

from featurestore import catalogue

AGAIN_S = 10.0  # the folder is not read more often
SHARE = 20  # nor for more than one part in so many of the time


def of(shared: Path, now: Callable[[], float] = time.monotonic) -> Callable[[str], str | None]:
    """An item's title; the folder is read again, now and then, for an item that it did not know."""
    known: dict[str, str] = {}
    next_s = now()

    def title(item_id: str) -> str | None:
        nonlocal next_s
        if item_id not in known and now() >= next_s:
            began_s = now()
            with contextlib.suppress(OSError):  # a lake that cannot be read is `store check`'s matter: ids are shown
                known.update(_rows(shared))
            known.update(_catalogue(shared / catalogue.FILE))
            next_s = began_s + max(AGAIN_S, SHARE * (now() - began_s))
        return known.get(item_id)

    return title


def _catalogue(file: Path) -> dict[str, str]:
    told: dict[str, str] = {}
    with contextlib.suppress(OSError, orjson.JSONDecodeError), file.open("rb") as lines:
        for item in map(orjson.loads, lines):
            if item.get("title"):
                told[item["item_id"]] = item["title"]
    return told


def _rows(shared: Path) -> dict[str, str]:
    """Every item's newest title; none where there is no lake, or no DuckDB to read it by."""
    if not (shared / "events").is_dir():
        return {}
    try:
        from featurestore import database, lake
    except ImportError:
        return {}

    def titles(cover: lake.Cover) -> dict[str, str]:
        relation = cover.relation(["item_id", "title", "ts_ms"], where="item_id IS NOT NULL AND title IS NOT NULL")
        with database.connect() as con:
            return dict(con.execute(f"SELECT item_id, arg_max(title, ts_ms) FROM ({relation}) GROUP BY 1").fetchall())

    return lake.Lake(shared, "titles").read(titles)
