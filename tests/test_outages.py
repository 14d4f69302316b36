"""Purchases that were not recorded: what tells them from purchases that did not come."""

from __future__ import annotations

import numpy as np
import pytest

from featurestore.events import Event, Origin, Row
from trainer.outages import Outage, outages

HOUR = 3_600_000
DAY = 24 * HOUR


def shop(
    days: int, lost: tuple[int, int] = (0, 0), *, share: float = 0.4, seed: int = 0, step: str = "checkout"
) -> list[Row]:
    """Ten sessions an hour, fewer by night, come to a step and a share buys; between two days that is lost."""
    rng, rows = np.random.default_rng(seed), list[Row]()
    for hour in range(24 * days):
        for n in range(rng.poisson(14 if hour % 24 > 7 else 2)):
            at_ms = hour * HOUR + n * 60_000
            buys = rng.random() < share and not lost[0] * DAY <= at_ms < lost[1] * DAY
            for k, kind in enumerate([step, step, "purchase"][: 3 if buys else 2]):
                name, ts_ms = f"{hour}-{n}-{k}", at_ms + k * 1_000
                event = Event(event_id=name, type=kind, user_id=name[:-2], ts_ms=ts_ms)  # type: ignore[arg-type]
                rows.append(Row(event=event, session_id=name[:-2], origin=Origin("events@log", 0, len(rows), 0, ts_ms)))
    return rows


@pytest.mark.parametrize("step", ["checkout", "cart"])
@pytest.mark.parametrize(("begin", "end"), [(2, 4), (5, 7), (0, 2)])
def test_a_stretch_without_purchases_is_found(begin: int, end: int, step: str) -> None:
    """In the middle, up to now, and from the beginning; it begins and ends where purchases are."""
    (found,) = outages(shop(7, (begin, end), step=step), DAY)
    assert found.from_ms == pytest.approx(begin * DAY, abs=4 * HOUR)
    assert found.to_ms == pytest.approx(end * DAY, abs=4 * HOUR)
    assert found.sessions == pytest.approx(480, rel=0.15)
    assert found.expected > 80


@pytest.mark.parametrize("share", [0.02, 0.4, 1.0])
def test_chance_is_no_outage(share: float) -> None:
    """However few buy: over a hundred weeks, nights and all, none is found."""
    assert not [found for seed in range(100) for found in outages(shop(7, share=share, seed=seed), DAY)]


def test_a_shop_without_purchases_or_checkouts_has_none() -> None:
    """Nothing is expected of it; nor of no rows at all."""
    assert outages(shop(7, share=0.0), DAY) == []
    assert outages([row for row in shop(7, (2, 4)) if row.event.type == "purchase"], DAY) == []
    assert outages([], DAY) == []


def test_what_is_shorter_than_labels_wait_is_none() -> None:
    """Cuts of that time still have purchases within their horizon."""
    assert outages(shop(7, (2, 4)), 3 * DAY) == []


def test_an_outage_says_when_it_was_and_what_to_look_at() -> None:
    """One line for a log and for the card of a version."""
    said = str(Outage(2 * DAY, 4 * DAY, 1_480, 591.6))
    assert said.startswith("no purchase from 1970-01-03 00:00 to 1970-01-05 00:00 UTC, though 1,480 sessions came")
    assert "some 592 buy: is the event sent?" in said
