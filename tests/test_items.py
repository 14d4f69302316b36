"""The catalogue's bytes and files, and how the worker's model and the retrains get to know it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest

from deploy import replay, stocking
from featurestore.catalogue import Item
from streams import bad, catalogue, client, items
from tests.test_rank import model

SHOE = Item(item_id="sku-1", title="Shoe", category="Sports > Shoes", price=9.5, told_ms=7)


@pytest.mark.parametrize("item", [SHOE, Item(item_id="é", available=False), Item(item_id="x", currency="EUR")])
def test_what_is_written_is_read_back(item: Item) -> None:
    """Every field, the time included."""
    assert items.told(items.encode(item)) == item


@pytest.mark.parametrize(
    ("key", "value", "reason", "why"),
    [
        (b"a", b'{"item_id": "b"}', "schema", "the message's key is b'a'"),
        (b"a", b'{"item_id": "a", "price": "9"}', "schema", "^price: "),
        (b"a", b'{"title": "a"}', "schema", "item_id"),
        (b"a", b"{", "bad-json", "not JSON"),
        (b"a", b"x" * 300_000, "too-large", "bytes"),
        (None, None, "schema", "0 characters"),
    ],
)
def test_what_is_no_item_says_why(key: bytes | None, value: bytes | None, reason: str, why: str) -> None:
    """The reason is the dead letter's, the field stands first."""
    with pytest.raises(bad.BadEvent, match=why) as caught:
        items.decode(value, key=key, record_ms=1)
    assert caught.value.reason == reason


def test_a_file_is_read_by_the_time_it_tells(tmp_path: Path) -> None:
    """CSV and JSON lines alike; what is wrong is named with its line."""
    (tmp_path / "a.csv").write_text("item_id,title,ts,available\nb,Tea,9,\na,Cup,3,no\n")
    told = stocking.read(tmp_path / "a.csv")
    assert [(i.item_id, i.title, i.told_ms, i.available) for i in told] == [
        ("a", "Cup", 3, False),
        ("b", "Tea", 9, True),
    ]
    (tmp_path / "b.jsonl").write_text('{"item_id": "a"}\n{"item_id": 3}\n')
    with pytest.raises(replay.UnreadableFile, match="line 2: item_id"):
        stocking.read(tmp_path / "b.jsonl")
    stocking.write(tmp_path / "c.jsonl", told)
    assert stocking.read(tmp_path / "c.jsonl") == told


class _Record:
    """What Kafka would hand out."""

    topic, partition, headers, timestamp = "items", 0, (), 5

    def __init__(self, offset: int, key: bytes, value: bytes | None) -> None:
        self.offset, self.key, self.value = offset, key, value


class _Outlet:
    def __init__(self) -> None:
        self.dead: list[Any] = []

    async def dead_letter(self, dead: Any) -> Any:
        self.dead.append(dead)
        return asyncio.sleep(0)


def test_a_worker_stocks_what_is_told_and_tells_what_is_wrong_once(tmp_path: Path) -> None:
    """A model that is swapped in gets all of it; another process of the same folder tells no dead letter again."""

    def source() -> catalogue.Catalogue:
        made = catalogue.Catalogue("127.0.0.1:1", "items")
        made.take_records(
            [_Record(0, b"sku-1", items.encode(SHOE)), _Record(1, b"sku-2", b"{"), _Record(2, b"x", None)]
        )
        return made

    async def go(stock: stocking.Stock, outlet: _Outlet) -> None:
        async def on_scorer(work: Any, *arguments: Any) -> None:
            assert stock.status()["waiting"] == 2  # until the model has them
            work(*arguments)

        for made in (model(tmp_path, trained=False), model(tmp_path, trained=True)):
            await stock.step(made, on_scorer)
            assert made.memory.items["sku-1"].title == "Shoe"
            assert made.memory.withdrawn == {"x"}
        await stock.keep(cast(stocking.Outlet, outlet))

    first, second = _Outlet(), _Outlet()
    stock = stocking.Stock(source(), tmp_path, "log")
    assert stock.status()["waiting"] == 2  # read, and not asked for yet
    asyncio.run(go(stock, first))
    asyncio.run(go(stocking.Stock(source(), tmp_path, "log"), second))
    assert [dead.key for dead in first.dead] == [b"sku-2"]
    assert not second.dead
    assert stock.status() == {"items": 1, "withdrawn": 1, "waiting": 0, "refused": 1}
    assert {item.item_id for item in stocking.shared(tmp_path)} == {"sku-1", "x"}


def test_a_broken_connection_reads_nothing_twice() -> None:
    """Records that come again after newer ones do not bring the old text back."""
    made = catalogue.Catalogue("127.0.0.1:1", "items")
    records = [_Record(n, b"a", items.encode(Item(item_id="a", title=f"v{n}"))) for n in range(3)]
    made.take_records(records)
    made.changed()
    made.take_records(records)
    assert made.changed() == []
    assert made.items["a"].title == "v2"


def test_producer_refuses_what_is_no_item(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is sent."""
    sent: list[tuple[str, bytes | None]] = []
    made = client.ItemProducer.__new__(client.ItemProducer)
    monkeypatch.setattr(made, "_queue", lambda named, key, value: sent.append((key, value)), raising=False)
    with pytest.raises(client.BadEvent, match="item_id"):
        made.send({"title": "no id"})
    with pytest.raises(client.BadEvent, match="0 characters"):
        made.send({"withdrawn": True})
    made.send({"item_id": "a", "withdrawn": True})
    made.send(SHOE)
    assert sent == [("a", None), ("sku-1", items.encode(SHOE))]
