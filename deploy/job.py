"""What a trainer hands to the process of one retrain."""

from __future__ import annotations

from typing import Literal

import msgspec

from featurestore import window
from trainer import tuning

Kind = Literal["refresh", "tune"]


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
    tune: tuning.TuneSettings
    epochs: int
