"""What a shop says of its items, beside what its events say of them."""

from __future__ import annotations

import msgspec


class Item(msgspec.Struct, frozen=True, kw_only=True):
    """One item as the catalogue tells it; `available` false: withdrawn, never proposed until it is told anew."""

    item_id: str
    title: str | None = None
    category: str | None = None  # a path, `Sports > Shoes`
    brand: str | None = None
    price: float | None = None
    currency: str | None = None
    available: bool = True
    told_ms: int = 0  # when it was told so; 0: before all events


FILE = "items.jsonl"  # in the shared folder, as the workers know the catalogue: what a retrain and `rank` take
