"""What a trainer hands to the process of one retrain."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from featurestore import window
from trainer import knobs

Kind = Literal["refresh", "prepare", "tune"]  # prepare: tune the language model; tune: make and judge a version with it


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What the retrain's own process needs, as plain values."""

    shared: str
    name: str
    encoder: str | None
    champion: str | None
    since: dict[str, int]
    policy: window.WindowPolicy
    forgotten: frozenset[str]
    logs: str
    kind: Kind
    tune: knobs.TuneSettings
    network: dict[str, Any]  # NetworkSettings, whose module would bring torch
    ranker: bool = False  # whether LambdaRank orders the items
    encoded: str | None = None  # the digest of what `prepare` made
    tensorboard: str = ""  # a folder for its events
    mlflow: str = ""  # a tracking URI


class Prepared(msgspec.Struct, frozen=True, kw_only=True):
    """What a `prepare` came to."""

    reason: str
    encoded: str | None = None  # the digest of the new encoder
