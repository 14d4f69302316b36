"""Why something is no event."""

from __future__ import annotations

from typing import Literal

import msgspec

MESSAGE_CHARS = 500  # an explanation is cut here, so that a dead letter always fits

Reason = Literal["bad-json", "schema", "too-large", "future-ts", "too-late"]


class BadEvent(ValueError):
    """The message holds no readable event; `reason` is the dead letter's, the text names the field and the remedy."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message[:MESSAGE_CHARS])
        self.reason = reason


class BadElement(msgspec.Struct, frozen=True, gc=False):
    """One event of a message that was not accepted; `n` is its place."""

    n: int
    reason: Reason
    message: str
