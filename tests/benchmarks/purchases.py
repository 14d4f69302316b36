"""What the purchase head is worth, refreshed daily, with outages heeded and with what fell into them taken for a no.

    python tests/benchmarks/purchases.py FILE [--days 26] [--every 2]

Each day is asked by a head that was fitted on the two weeks before, on labels that were known by then; beside it the
share that bought by furthest step, refreshed alike. Days after an outage are told from day to day as well.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from deploy import backtest
from deploy.settings import Settings
from featurestore import window
from trainer import heads, judge, retrain
from trainer.cases import window_rows

DAY_MS = 86_400_000
WINDOW, FIRST = 14, 4  # days that a head learns from; the first that is asked


def main() -> None:
    """Read, fit day by day, print the table."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("file", type=Path)
    asked.add_argument("--days", type=int, default=26)
    asked.add_argument("--every", type=int, default=2, help="take every n-th cut")
    said = asked.parse_args()
    settings = Settings.load({"encoder": "none"})
    rows = backtest.read(settings, said.file)
    until_ms = rows[0].event.ts_ms + said.days * DAY_MS
    rows = [row for row in rows if row.event.ts_ms < until_ms]
    heeded = backtest.labels_of(settings, rows)
    with mock.patch.object(window, "outages", return_value=()):
        blind = backtest.labels_of(settings, rows)
    for outage in heeded.outages:
        print(outage)
    seen, part = retrain.rows_of(heeded), np.arange(0, len(heeded), said.every)
    x = np.array([heads.features(window_rows(heeded, seen, int(i)), int(heeded.at_ms[i])) for i in part])
    day = (heeded.at_ms[part] - rows[0].event.ts_ms) / DAY_MS
    session, came = heeded.session_key[part], blind.purchase[part]
    test = (day >= FIRST) & (came >= 0) & (heeded.purchase[part] >= 0)
    print("\n| days, n | labels | said, came | log loss | to the other labels | base rates | ECE |")
    print("|---|---|---|---|---|---|---|")
    arms = {"outages are no": came, "outages heeded": heeded.purchase[part]}
    told = {name: daily(x, day, session, label, said.days) for name, label in arms.items()}
    ends = [(o.to_ms - rows[0].event.ts_ms) / DAY_MS + WINDOW + 1 for o in heeded.outages]
    bounds = sorted({FIRST, *(int(np.ceil(end)) for end in ends if end < said.days), said.days})
    for begin, end in [(FIRST, said.days), *itertools.pairwise(bounds)]:
        here = test & (day >= begin) & (day < end) & ~np.isnan(told["outages heeded"][0])
        bought = came[here] == 1
        losses = {name: heads.surprise(made[0][here], bought) for name, made in told.items()}
        for name, (made, rates) in told.items():
            more = judge.interval(losses[name] - losses["outages are no"], session[here])
            print(
                f"| {begin}–{end}, {here.sum():,} | {name} | {made[here].mean():.3f}, {bought.mean():.3f} | "
                f"{losses[name].mean():.4f} | {more.mean:+.4f} [{more.low:.4f}, {more.high:.4f}] | "
                f"{heads.surprise(rates[here], bought).mean():.4f} | "
                f"{judge.ece(made[here], bought.astype(float)):.3f} |"
            )


def daily(x: Any, day: Any, session: Any, label: Any, days: int) -> tuple[Any, Any]:
    """Of each cut the head's probability and its step's share, by what was known at the beginning of its day."""
    made, rates = np.full(len(x), np.nan), np.full(len(x), np.nan)
    for begin in range(FIRST, days):
        known = (day >= begin - WINDOW) & (day < begin - 1) & (label >= 0)
        asked, bought, steps = (day >= begin) & (day < begin + 1), label[known] == 1, x[known][:, : len(heads.STEPS)]
        head = heads.fit(x[known], bought, session[known])
        if head is not None:
            made[asked] = head.of(x[asked])
            rates[asked] = x[asked][:, : len(heads.STEPS)] @ heads.rates(steps, bought)
    return made, rates


if __name__ == "__main__":
    main()
