"""Titles of items that no event has named since a command began."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy import titles, watching
from deploy.settings import Settings
from featurestore import catalogue, lake
from featurestore.events import Event, Origin, Row


def row(offset: int, item: str, title: str | None) -> Row:
    """A view."""
    key = lake.PartitionKey("shop@log1", 0)
    event = Event(event_id=f"e{offset}", type="view", user_id="u", ts_ms=offset, item_id=item, title=title)
    return Row(event, Origin(*key, offset, 0, offset), "s")


def test_the_folder_is_asked_again_only_now_and_then(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An item new to it is asked for once in ten seconds, and never for more than a twentieth of the time."""
    clock, reads = [0.0], list[Path]()

    def read(shared: Path) -> dict[str, str]:
        reads.append(shared)
        clock[0] += 2.0 if len(reads) > 1 else 0.0
        return {"i1": "One"}

    monkeypatch.setattr(titles, "_rows", read)
    title = titles.of(tmp_path, lambda: clock[0])
    assert (title("i1"), title("i2"), title("i3"), len(reads)) == ("One", None, None, 1)
    clock[0] = 11.0
    assert (title("i2"), len(reads)) == (None, 2)
    clock[0] = 50.0
    assert (title("i2"), len(reads)) == (None, 2)
    clock[0] = 51.0
    assert (title("i2"), len(reads)) == (None, 3)


def test_history_and_the_catalogue_have_titles(tmp_path: Path) -> None:
    """The lake's newest title, the catalogue's before it, what came since the start before both; else none."""
    rows = [row(0, "i1", "Old lamp"), row(1, "i1", "Lamp"), row(2, "i2", "Shoe"), row(3, "i3", None)]
    lake.Lake(tmp_path, "w").write_rows(lake.PartitionKey("shop@log1", 0), 0, rows)
    (tmp_path / catalogue.FILE).write_text('{"item_id": "i2", "title": "Trail shoe"}\n{"item_id": "i4"}\n')
    watch = watching.Watch(Settings.load({"shared": str(tmp_path)}), from_start=False)
    watch.titles["i5"] = "Boot"
    assert [watch.title(f"i{n}") for n in range(1, 6)] == ["Lamp", "Trail shoe", None, None, "Boot"]


def test_a_folder_that_cannot_be_read_has_none(tmp_path: Path) -> None:
    """Half a catalogue, a damaged segment: what was read stands, and nothing ends by it."""
    path = lake.Lake(tmp_path, "w").write_rows(lake.PartitionKey("shop@log1", 0), 0, [row(0, "i1", "Lamp")])
    assert path is not None
    path.write_bytes(b"PAR1")
    (tmp_path / catalogue.FILE).write_text('{"item_id": "i2", "title": "Shoe"}\n{"item_')
    title = titles.of(tmp_path)
    assert (title("i1"), title("i2")) == (None, "Shoe")
