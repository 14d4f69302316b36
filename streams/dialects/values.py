"""The values inside foreign events: texts, numbers, instants, categories, and what is personal."""

from __future__ import annotations

import datetime
import functools
import math
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import msgspec

from featurestore.events import MAX_TS_MS
from streams.dialects import verbs

DEPTH = 6  # of what is kept in properties
NAME_CHARS = 100  # of a field's name that are looked at
CUT_CHARS = 2_000  # of a text that is kept in properties

PLACEHOLDERS = frozenset({
    "", "(not set)", "(none)", "<other>", "<obfuscated>", "(data deleted)", "not available in demo dataset", "null",
    "none", "nil", "undefined", "nan", "n/a", "00000000-0000-0000-0000-000000000000",
})  # fmt: skip
# Fields that tell who or where somebody is: by a word of their name, or by their name as `plain` writes it.
PERSONAL_WORDS = frozenset({
    "email", "emails", "phone", "telephone", "ip", "ipaddress", "address", "addresses", "street", "postcode", "zipcode",
    "latitude", "longitude", "birthday", "birthdate", "dob", "password", "useragent",
})  # fmt: skip
PERSONAL = frozenset({
    "mail", "mobile", "mobilenumber", "postalcode", "zip", "firstname", "lastname", "fullname", "username",
    "customername", "dateofbirth", "locationlat", "locationlng", "lat", "lng", "useragent", "idfa", "idfv", "adid",
    "advertisingid", "traits", "userproperties", "set", "setonce", "userdata", "externalid", "geo", "context",
})  # fmt: skip
_MAIL = re.compile(r"[^\s@]@[^\s@]+\.[^\s@]")  # no run of characters before the @: linear in the text's length
_NETWORK = re.compile(r"\d{1,3}(\.\d{1,3}){3}")
_NUMBER = re.compile(r"[^\d.,+-]*([+-]?\d[\d.,]*)[^\d.,+-]*")
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_anything = msgspec.json.Decoder().decode


def plain(name: str) -> str:
    """A field's name without case and punctuation.

    >>> plain("product_id") == plain("productId") == plain("Product ID")
    True
    """
    return _plain(name[:NAME_CHARS])


@functools.lru_cache(4096)
def _plain(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())


def text(value: Any) -> str | None:
    """A text or a number as text; None where it says nothing.

    >>> text(" SKU-1 "), text(123.0), text("(not set)"), text(["a"])
    ('SKU-1', '123', None, None)
    """
    if isinstance(value, bool):
        return None
    if isinstance(value, float):
        value = int(value) if value.is_integer() and abs(value) < 2**63 else value
    if isinstance(value, int | float):
        return str(value) if abs(value) < 10**60 else None
    if not isinstance(value, str):
        return None
    value = value.strip()
    return None if value.lower() in PLACEHOLDERS else value


def number(value: Any) -> float | None:
    """A number, or the one number in a text; None where there is none.

    >>> number("$1,299.50"), number("12,50 €"), number("1.299,50"), number("Slide 1"), number(True)
    (1299.5, 12.5, 1299.5, None, None)
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value) if abs(value) < 1e300 else None
    if not isinstance(value, str) or len(value) > 40 or re.search(r"[^\W\d_]{4,}", value):
        return None
    if not (found := _NUMBER.fullmatch(value.strip())):
        return None
    digits = found[1].rstrip(".,")
    if re.fullmatch(r"[+-]?\d{1,3}(,\d{3})+", digits) or 0 <= digits.rfind(",") < digits.rfind("."):
        digits = digits.replace(",", "")  # a comma for the thousands
    elif "," in digits:
        digits = digits.replace(".", "").replace(",", ".")
    try:
        return float(digits)
    except ValueError:
        return None


def whole(value: Any) -> int | None:
    """A whole number that fits 64 bits; None where there is none.

    >>> whole("2"), whole(2.0), whole(4.5), whole("Slide 1")
    (2, 2, None, None)
    """
    found = number(value)
    if found is None or not math.isfinite(found) or not found.is_integer() or abs(found) >= 2**63:
        return None
    return value if isinstance(value, int) else int(found)


def instant(value: Any) -> int | None:
    """Epoch milliseconds of an instant in any clock's notation; None where it is none.

    A number is seconds, milliseconds or microseconds by its size; a time without a zone is UTC.

    >>> instant(1_619_006_730) == instant("1619006730000") == instant(1_619_006_730_000_000)
    True
    >>> instant("1970-01-01 05:30:01 UTC"), instant("1970-01-01T05:30:01+05:30"), instant("yesterday")
    (19801000, 1000, None)
    """
    if isinstance(value, str):
        value = value.strip().removesuffix(" UTC")
        if re.fullmatch(r"\d{9,19}", value):
            value = int(value)
        elif re.fullmatch(r"\d{1,19}\.\d{1,20}([eE]\+?\d{1,2})?", value):
            value = float(value)
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int | float):
        return _epoch(value)
    try:
        read = datetime.datetime.fromisoformat(value)
        aware = read if read.tzinfo else read.replace(tzinfo=datetime.UTC)
        ms = (aware - _EPOCH) // datetime.timedelta(milliseconds=1)
    except (ValueError, TypeError, OverflowError):
        return None
    return ms if 0 <= ms <= MAX_TS_MS else None


def _epoch(value: float) -> int | None:
    if not 0 < value < 10**19:
        return None
    if value < 10**11:
        return round(value * 1000)
    while value >= 10**14:
        value = value // 1000 if isinstance(value, int) else value / 1000
    return int(value)


def corrected(received: Any, sent: Any, happened: Any) -> int | None:
    """When it happened by the server's clock: received - (sent - happened); None where one of the three is missing."""
    at, out, then = instant(received), instant(sent), instant(happened)
    return None if at is None or out is None or then is None else max(0, at - (out - then))


def path(value: Any, separator: str = "/") -> str | None:
    """A category as our path.

    >>> path("Home/Apparel/"), path(["a", "b"]), path("(not set)"), path("a.b", ".")
    ('Home > Apparel', 'a > b', None, 'a > b')
    """
    parts = value if isinstance(value, list) else str(text(value) or "").split(separator)
    return " > ".join(said for part in parts if (said := text(part))) or None


def json_of(value: Any) -> Any:
    """What a text that holds JSON says; anything else as it is."""
    if isinstance(value, str) and value[:64].lstrip()[:1] in ("{", "["):
        try:
            return _anything(value)
        except (msgspec.DecodeError, RecursionError):
            return value
    return value


def table(value: Any) -> dict[str, Any]:
    """An object, also when it was written as a text; empty where it is none."""
    value = json_of(value)
    return value if isinstance(value, dict) else {}


def many(value: Any) -> list[Any]:
    """A list, also when it was written as a text or holds one object without brackets."""
    value = json_of(value)
    return value if isinstance(value, list) else [value] if isinstance(value, dict) and value else []


class Fields:
    """An object's fields by any spelling of their names; remembers which were read."""

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self.fields = fields
        self.names: dict[str, str] = {}
        for name in fields:
            self.names.setdefault(plain(name), name)
        self.read: set[str] = set()

    def first(self, names: Iterable[str], convert: Any = text) -> Any:
        """The first of these fields that holds something."""
        for name in names:
            if (written := self.names.get(plain(name))) is not None and (
                found := convert(self.fields[written])
            ) is not None:
                self.read.add(written)
                return found
        return None

    def rest(self, without: Collection[str] = ()) -> dict[str, Any]:
        """What was not read."""
        return {
            name: value
            for name, value in self.fields.items()
            if name not in self.read and plain(name) not in without and name
        }


def impersonal(fields: Mapping[str, Any], keep: Collection[str] = ()) -> dict[str, Any]:
    """The fields without what is personal and what is empty; addresses of pages lose their query.

    >>> impersonal({"email": "a@b.cd", "coupon": "X", "note": "c@d.ef", "url": "https://x.y/z?q=1"})
    {'coupon': 'X', 'url': 'https://x.y/z'}
    """
    kept = _impersonal(dict(fields), frozenset(plain(name) for name in keep), 0)
    return kept if isinstance(kept, dict) else {}


def personal(name: str) -> bool:
    """Whether a field of this name tells who or where somebody is.

    >>> personal("customerEmail"), personal("request_ip"), personal("shipping")
    (True, True, False)
    """
    return _personal(name[:NAME_CHARS])


@functools.lru_cache(4096)
def _personal(name: str) -> bool:
    return plain(name) in PERSONAL or not PERSONAL_WORDS.isdisjoint(verbs.words(name).split())


def _told(value: Any) -> bool:
    """Whether a text is a person's or a machine's address, whatever its field is called."""
    return isinstance(value, str) and bool(_MAIL.search(value) or _NETWORK.fullmatch(value))


def _impersonal(value: Any, keep: frozenset[str], depth: int) -> Any:
    if isinstance(value, str):
        if text(value) is None:
            return None
        return re.sub(r"(https?://[^\s?#]*)[?#]\S*", r"\1", value[:CUT_CHARS])
    if isinstance(value, dict) and depth < DEPTH:
        named = (
            (name, _impersonal(inner, keep, depth + 1))
            for name, inner in value.items()
            if plain(name) in keep or not (personal(name) or _told(inner))
        )
        return {name: inner for name, inner in named if inner is not None} or None
    if isinstance(value, list) and depth < DEPTH:
        found = (_impersonal(inner, keep, depth + 1) for inner in value if not _told(inner))
        return [inner for inner in found if inner is not None] or None
    return value if isinstance(value, int | float) else None
