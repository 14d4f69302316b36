"""What the doctor has to say of one thing, and what to do about it."""

from __future__ import annotations

from typing import Literal

import msgspec

Level = Literal["ok", "notice", "fault"]


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was looked at; a fault stands in the way of a start."""

    check: str
    level: Level
    text: str
    remedy: str = ""
