"""Purchases that were not recorded: what tells them from purchases that did not come."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from featurestore.outages import Outage, outages

HOUR = 3_600_000
DAY = 24 * HOUR


Shop = list[tuple[int, str, int]]  # of each row its time, what was done, its session


def shop(
    days: int, lost: tuple[int, int] = (0, 0), *, share: float = 0.4, seed: int = 0, step: str = "checkout"
) -> Shop:
    """Ten sessions an hour, fewer by night, come to a step and a share buys; between two days that is lost."""
    rng, rows, session = np.random.default_rng(seed), list[tuple[int, str, int]](), 0
    for hour in range(24 * days):
        for n in range(rng.poisson(14 if hour % 24 > 7 else 2)):
            at_ms, session = hour * HOUR + n * 60_000, session + 1
            buys = rng.random() < share and not lost[0] * DAY <= at_ms < lost[1] * DAY
            kinds = [step, step, "purchase"][: 3 if buys else 2]
            rows += [(at_ms + k * 1_000, kind, session) for k, kind in enumerate(kinds)]
    return rows


def found(rows: Shop, least_ms: int = DAY) -> list[Outage]:
    """Those of a shop."""
    ts_ms, kinds, session = zip(*rows, strict=True) if rows else ((), (), ())
    whole = np.array(ts_ms, np.int64), pa.chunked_array([pa.array(kinds, pa.string())]), np.array(session, np.int64)
    return list(outages(*whole, least_ms))


@pytest.mark.parametrize("step", ["checkout", "cart"])
@pytest.mark.parametrize(("begin", "end"), [(2, 4), (5, 7), (0, 2)])
def test_a_stretch_without_purchases_is_found(begin: int, end: int, step: str) -> None:
    """In the middle, up to now, and from the beginning; it begins and ends where purchases are."""
    (one,) = found(shop(7, (begin, end), step=step))
    assert one.from_ms == pytest.approx(begin * DAY, abs=4 * HOUR)
    assert one.to_ms == pytest.approx(end * DAY, abs=4 * HOUR)
    assert one.sessions == pytest.approx(480, rel=0.15)
    assert one.expected > 80


@pytest.mark.parametrize("share", [0.02, 0.4, 1.0])
def test_chance_is_no_outage(share: float) -> None:
    """However few buy: over a hundred weeks, nights and all, none is found."""
    assert not [one for seed in range(100) for one in found(shop(7, share=share, seed=seed))]


def test_a_shop_without_purchases_or_checkouts_has_none() -> None:
    """Nothing is expected of it; nor of no rows at all."""
    assert found(shop(7, share=0.0)) == []
    assert found([row for row in shop(7, (2, 4)) if row[1] == "purchase"]) == []
    assert found([]) == []


def test_what_is_shorter_than_labels_wait_is_none() -> None:
    """Cuts of that time still have purchases within their horizon."""
    assert found(shop(7, (2, 4)), 3 * DAY) == []


def test_an_outage_says_when_it_was_and_what_to_look_at() -> None:
    """One line for a log and for the card of a version."""
    said = str(Outage(2 * DAY, 4 * DAY, 1_480, 591.6))
    assert said.startswith("no purchase from 1970-01-03 00:00 to 1970-01-05 00:00 UTC, though 1,480 sessions came")
    assert "some 592 buy: is the event sent?" in said
