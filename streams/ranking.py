"""Ask a worker how well given items suit a person just now: an existing recommender blends it in."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec

LIMIT = 5_000  # candidates at once
LIMIT_BYTES = 2 * 1024 * 1024

Text = str | Mapping[str, Any]


class RankedItem(msgspec.Struct, frozen=True, kw_only=True):
    """A candidate with the probability that it is the next different item engaged with, and its text's likeness."""

    place: int  # among the candidates as they were given
    item_id: str | None
    text: str
    probability: float
    match: float | None = None
    known: bool  # to the model: from an event or from the catalogue
    rank: int


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """The candidates, best first; `reason` is `popularity` where the person has no live session."""

    user_id: str
    session_id: str | None = None
    model_version: str
    reason: Literal["model", "fallback", "popularity"]
    none_probability: float | None = None
    ranked: list[RankedItem]
    withdrawn: list[str] = []  # candidates that the catalogue has taken back: they are not ranked


class NotRanked(RuntimeError):
    """The worker did not answer, or what was asked cannot be ranked; the message says why and what to do."""


def rank(
    url: str, user_id: str, candidates: Sequence[Text], *, token: str = "", timeout_s: float = 10.0
) -> Answer:  # fmt: skip
    """Rank candidates for a person: ids, texts, or mappings of item_id, title, category, brand, price.

    `url` is a worker's `http` address; any worker of the same shared folder will do. Raises `NotRanked`.
    """
    body = msgspec.json.encode({"user_id": user_id, "candidates": candidates})
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    if not url.startswith(("http://", "https://")):
        raise NotRanked(f"{url!r} is no address of a worker: write http://HOST:PORT, as its setting `http` says")
    request = urllib.request.Request(url.rstrip("/") + "/rank", body, headers)
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as answered:
            return msgspec.json.decode(answered.read(), type=Answer)
    except urllib.error.HTTPError as error:
        raise NotRanked(f"{url} says {error.code}: {_told(error.read())}") from error
    except (OSError, msgspec.MsgspecError) as error:
        raise NotRanked(
            f"no worker answers at {url} ({error}): start one with --set http=HOST:PORT, and ask it there"
        ) from error


def _told(body: bytes) -> str:
    try:
        return str(msgspec.json.decode(body)["error"])
    except (msgspec.MsgspecError, KeyError, TypeError):
        return "nothing more"
