"""An item of the catalogue: bytes to item and back; says why something is none."""

from __future__ import annotations

from typing import Annotated

import msgspec

from featurestore.catalogue import Item
from featurestore.events import LIMIT_CATEGORY_CHARS, LIMIT_ID_CHARS, Instant
from streams import codec
from streams.bad import MESSAGE_CHARS, BadEvent


class Wire(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The contract of an item as JSON; fields that are not listed here are passed over."""

    item_id: Annotated[str, msgspec.Meta(min_length=1, max_length=LIMIT_ID_CHARS)]
    title: str | None = None
    category: Annotated[str, msgspec.Meta(max_length=LIMIT_CATEGORY_CHARS)] | None = None
    brand: str | None = None
    price: float | None = None
    currency: str | None = None
    available: bool | None = None
    ts: Instant | None = None


_wire = msgspec.json.Decoder(Wire).decode


def decode(value: bytes | None, *, key: bytes | None, record_ms: int) -> Item:
    """The item that a message tells; without a value it is withdrawn. Raises `BadEvent`."""
    if value is None:
        return Item(item_id=_named(key), available=False, told_ms=record_ms)
    item = told(value, record_ms)
    if key != item.item_id.encode():
        raise BadEvent("schema", f"item_id: is {item.item_id!r}, the message's key is {key!r}: they must be the same, "
                       "since the topic keeps the newest message of each key")  # fmt: skip
    return item


def told(value: bytes, told_ms: int = 0) -> Item:
    """An item from its JSON object; `told_ms` where it does not say itself since when. Raises `BadEvent`."""
    if len(value) > codec.LIMIT_BYTES:
        raise BadEvent("too-large", f"{len(value):,} bytes; an item has {codec.LIMIT_BYTES:,} at most")
    try:
        wire = _wire(value)
    except msgspec.ValidationError as error:
        raise BadEvent("schema", codec.explain(error)[:MESSAGE_CHARS]) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadEvent("bad-json", f"not JSON: {error}") from error
    return Item(
        item_id=wire.item_id, title=wire.title or None, category=wire.category or None, brand=wire.brand or None,
        price=wire.price, currency=wire.currency or None, available=wire.available is not False,
        told_ms=told_ms if wire.ts is None else codec.ms(wire.ts),
    )  # fmt: skip


def encode(item: Item) -> bytes:
    """An item as its message: `told` gives the same item back."""
    fields = {name: getattr(item, name) for name in Wire.__struct_fields__ if name not in ("available", "ts")}
    return msgspec.json.encode(Wire(**fields, available=None if item.available else False, ts=item.told_ms or None))


def _named(key: bytes | None) -> str:
    try:
        name = (key or b"").decode()
    except UnicodeDecodeError as error:
        raise BadEvent("schema", f"item_id: the key of a withdrawn item is no UTF-8: {error}") from error
    if not 0 < len(name) <= LIMIT_ID_CHARS:
        raise BadEvent("schema", f"item_id: the key of a withdrawn item has {len(name)} characters; 1 to "
                       f"{LIMIT_ID_CHARS} are an id")  # fmt: skip
    return name
