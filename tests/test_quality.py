"""Figures with intervals from sums that were added up."""

from __future__ import annotations

import math
import random

import pytest

from streams import interests, quality, waiting


def test_interval_of_equal_groups_is_that_of_their_means() -> None:
    """With groups of one size the jackknife is Student's interval of the groups' means."""
    got = quality.interval([1.0, 2.0, 3.0, 0.0], [4.0, 4.0, 4.0, 0.0])
    error = 0.25 / math.sqrt(3)  # the means .25, .5, .75
    assert (got["n"], got["mean"]) == (12, 0.5)
    assert (got["low"], got["high"]) == (pytest.approx(0.5 - 4.303 * error), pytest.approx(0.5 + 4.303 * error))


def test_one_group_has_no_interval_and_nothing_no_mean() -> None:
    """What cannot be known is null, not zero."""
    assert quality.interval([1.0, 0.0], [2.0, 0.0]) == {"n": 2, "mean": 0.5, "low": None, "high": None}
    assert quality.interval([0.0], [0.0])["mean"] is None


def test_intervals_hold_where_predictions_of_a_user_go_together() -> None:
    """Users who hit always or never, thirty predictions each: 95 % intervals hold the truth about so often."""
    chance, held = random.Random(7), 0
    for _ in range(400):
        top, bottom = [0.0] * waiting.GROUPS, [0.0] * waiting.GROUPS
        for _ in range(200):
            group = chance.randrange(waiting.GROUPS)
            top[group] += 30 * (chance.random() < 0.4)
            bottom[group] += 30
        got = quality.interval(top, bottom)
        assert got["low"] is not None
        assert got["high"] is not None
        held += got["low"] <= 0.4 <= got["high"]
    assert 0.92 < held / 400 < 0.98


def test_a_line_a_version_and_arm_and_one_for_what_waits() -> None:
    """Before anything is settled there is nothing but what waits; without predictions nothing at all."""
    empty = {"open": 0, "settled": 0, "unsettled": 0, "passed_over": 0, "by": [], "gains": []}
    assert list(quality.plain(quality.merged([]))) == []
    assert next(iter(quality.plain(empty | {"open": 3}))).startswith("live quality: 0 predictions settled, 3 wait")
    sums = {name: [0.0] * waiting.GROUPS for name in interests.FIELDS}
    sums |= {"settled": [4.0, 4.0] + [0.0] * 8, "loss": [8.0, 8.0] + [0.0] * 8, "none_said": [4.0] + [0.0] * 9}
    (line,) = quality.plain(empty | {"by": [{"version": "v1", "arm": "champion", **quality.quality(sums)}]})
    assert "live v1 champion (n=8): log loss 2.000 [2.000, 2.000], R@20 –" in line
    assert "nothing more said 0.50, came 1.00" in line


def test_arms_of_a_version_are_set_against_each_other() -> None:
    """Champion minus hold-back where a version has both; an interval holds no difference where there is none."""
    chance = random.Random(7)

    def arm(version: str, name: str, hits: float) -> dict[str, object]:
        sums = {field: [0.0] * waiting.GROUPS for field in interests.FIELDS}
        for group in range(waiting.GROUPS):
            came = sum(chance.random() < hits for _ in range(200))
            sums["settled"][group] = sums["next"][group] = 200.0
            sums["hit20"][group] = float(came)
        return {"version": version, "arm": name, "sums": sums}

    said = [arm("v1", "champion", 0.6), arm("v1", "holdback", 0.5), arm("v2", "champion", 0.6),
            arm("v2", "holdback", 0.6), arm("v3", "champion", 0.6)]  # fmt: skip
    live = quality.merged([{"outcomes": dict.fromkeys(quality.COUNTS, 0) | {"by": said}}])
    better, same = live["gains"]
    assert (better["version"], same["version"]) == ("v1", "v2")
    assert 0 < better["recall20"]["low"] < 0.1 < better["recall20"]["high"]
    assert same["recall20"]["low"] < 0 < same["recall20"]["high"]
    lines = list(quality.plain(live))
    assert any(
        line.startswith("live v1 against those held back: log loss +0.000 [+0.000, +0.000], R@20 +0.") for line in lines
    )
