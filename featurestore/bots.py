"""Sessions that no person makes: one rule, judged at each row from it and the rows of its session before it."""

from __future__ import annotations

import re
from typing import Literal, Protocol

import msgspec

Reason = Literal["rate", "length", "agent"]
REASONS: tuple[Reason, ...] = ("rate", "length", "agent")
# What crawlers, monitors, link previews and scripts call themselves.
_PROGRAM = re.compile(
    r"bot\b|crawl|spider|slurp|headless|phantomjs|lighthouse|pingdom|facebookexternalhit|monitor|preview|scrap"
    r"|python-|curl/|wget|okhttp|java/|go-http|libwww|axios/",
    re.IGNORECASE,
)
_AGENT = re.compile(r'"[$_]?(?:raw_?)?user_?agent"\s*:\s*"((?:[^"\\]|\\.)*)"', re.IGNORECASE)


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """When a session is a program's; instants are event time.

    An act takes a person `pace_ms` on average: who gets `burst` acts ahead of that pace is none (a leaky bucket that
    every act fills by one and that runs empty by one each `pace_ms`; the GCRA of ITU-T I.371). Nor is who acts more
    than `length` times in one session, or whose user agent names a program. 0 turns a part off.
    """

    pace_ms: int = 2_000
    burst: int = 30
    length: int = 1_000


class Tally(Protocol):
    """What of a session the rule knows."""

    last_ms: int
    acts: int
    ahead_ms: int  # the time that its acts would have taken a person, less the time that has passed
    bot: str | None


def judge(session: Tally, ts_ms: int, type_: str, properties: str | None, rule: Rule) -> str | None:
    """Why a session is a program's once this row has joined it, None where it may be a person's; it stays one.

    Call it before the row moves `last_ms`. Rows of one instant are one act, since one message or page may tell several;
    impressions are none, and a row that comes out of its order changes nothing.
    """
    since_ms, acts = ts_ms - session.last_ms, session.acts
    if since_ms > 0 or not acts:
        ahead_ms = session.ahead_ms - since_ms
        if ahead_ms < 0:
            ahead_ms = 0
        if type_ != "impression":
            pace_ms = rule.pace_ms
            session.acts = acts = acts + 1
            if ahead_ms and session.bot is None and ahead_ms + pace_ms > rule.burst * pace_ms > 0:
                session.bot = "rate"
            elif acts > rule.length > 0 and session.bot is None:
                session.bot = "length"
            ahead_ms += pace_ms
        session.ahead_ms = ahead_ms
    if properties is not None and session.bot is None and names_program(properties):
        session.bot = "agent"
    return session.bot


def names_program(properties: str) -> bool:
    """Whether the user agent among an event's other fields names a program.

    >>> names_program('{"user_agent": "Googlebot/2.1"}'), names_program('{"page": "robots", "userAgent": "Mozilla"}')
    (True, False)
    """
    said = _AGENT.search(properties) if "gent" in properties else None
    return said is not None and is_program(said[1])


def is_program(agent: str) -> bool:
    """Whether a user agent names a program."""
    return _PROGRAM.search(agent) is not None
