"""What a cadence is worth: which versions are looked back at, what they come to, what it advises."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from featurestore import lake
from tests.test_trainer_loop import KEY, POLICY, shop_rows
from trainer import judge, registry, retrain, staleness, texts
from trainer.predictor import Predictor

MINUTE = 60_000


def test_each_rung_takes_the_version_nearest_to_its_age_and_none_that_saw_the_slice() -> None:
    """A version whose data reach beyond the champion's has seen what is judged on."""
    now = 400 * MINUTE
    made = {
        f"v{age}": staleness.Made(now - age * MINUTE, {"t|0": 1_000 - age}) for age in (1, 2, 4, 6, 14, 40, 100, 390)
    }
    made["rolled back from"] = staleness.Made(now - 15 * MINUTE, {"t|0": 5_000})
    found = staleness.chosen(made, "v1", now)
    assert found == {
        MINUTE: "v1", 5 * MINUTE: "v6", 15 * MINUTE: "v14", 60 * MINUTE: "v40", 360 * MINUTE: "v390",
    }  # fmt: skip


def test_a_ladder_of_few_versions_serves_every_rung_at_any_time() -> None:
    """A version a minute for ten hours, pruned each time to the newest few and the ladder: each rung finds one."""
    made: dict[str, staleness.Made] = {}
    for minute in range(600):
        made[f"v{minute:03}"] = staleness.Made(minute * MINUTE)
        now = minute * MINUTE + 30_000
        keep = staleness.ladder(made, now) | set(sorted(made)[-3:])
        made = {name: one for name, one in made.items() if name in keep}
        if minute > 540:
            assert set(staleness.chosen(made, max(made), now + 30_000)) == set(staleness.RUNGS_MS)
    assert len(made) < 40


def test_an_older_version_is_scored_on_the_slice_of_a_newer_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both ways of ageing have the slice's cases and finite bounds; they differ by the memory alone."""
    monkeypatch.setattr(judge, "refresh_gate", lambda *_: (True, "whatever it is", {}))
    the_lake, words, out = lake.Lake(tmp_path, "w"), texts.Texts(None, tmp_path, "w"), registry.Registry(tmp_path)
    rows = shop_rows(6_000)
    champion, since, begins = None, {}, 0
    verdict: Any = None
    for n, end in enumerate((3_000, 6_000)):
        the_lake.write_rows(KEY, begins, rows[begins:end])
        begins, now_ms = end, (n + 1) * 5 * MINUTE
        back = staleness.look_back(out, champion, now_ms, lambda path: Predictor.load(path, words))
        policy = msgspec.structs.replace(POLICY, since=since)
        verdict = retrain.run(the_lake.cover(), champion, retrain.Recipe(), policy, now_ms, texts=words, out=out,
                              look_back=back)  # fmt: skip
        if verdict.version is not None:
            champion = out.path(verdict.version)
            since = {KEY: next(iter(verdict.data_offsets.values()))}
    (point,) = verdict.staleness.points
    assert (point.rung_ms, point.age_ms) == (5 * MINUTE, 5 * MINUTE)
    assert point.trained.n == point.shipped.n >= POLICY.n_min
    assert point.trained.low is not None
    assert point.shipped.mean != point.trained.mean  # today's memory plays its part in one of them only
    assert verdict.staleness.cpu_seconds < verdict.cpu_seconds


def verdict_of(rung_ms: int, mean: float, width: float) -> dict[str, Any]:
    """A verdict with one rung."""
    bound = {"n": 500, "mean": mean, "low": mean - width, "high": mean + width}
    return {"accepted": True, "staleness": {"points": [{"rung_ms": rung_ms, "trained": bound, "shipped": bound}]}}


def test_retrains_together_say_what_one_cannot() -> None:
    """Four slices halve the interval; a rejected retrain, whose slice comes again, is not counted."""
    said = [verdict_of(15 * MINUTE, 0.03, 0.04)] * 4 + [verdict_of(15 * MINUTE, 9.0, 0.1) | {"accepted": False}]
    (pooled,) = staleness.pooled(said)
    assert (pooled.n, pooled.retrains) == (2_000, 4)
    assert abs(pooled.low - 0.01) < 1e-9
    assert "more often than every 15 min" in staleness.advice([pooled], 30 * MINUTE, None)


def test_advice_names_a_cadence_that_cannot_be_kept() -> None:
    """Where a retrain takes longer than the cadence, the sustained one is what to set."""
    assert staleness.advice([], MINUTE, 95_000).startswith("Set 95 s")
