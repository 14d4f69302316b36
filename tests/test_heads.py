"""The purchase head: base rates by the furthest step, and what else a session says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from featurestore.events import Event, EventType, Origin, Row
from trainer import heads, network, texts
from trainer.blend import Blend
from trainer.memory import Memory
from trainer.predictor import Predictor, Trained

HOUR_MS = 3_600_000
N = 4_000


def session(*types: EventType, price: float | None = None) -> list[Row]:
    """One row a second; item events tell the price."""
    return [
        Row(Event(event_id=f"e{n}", type=one, user_id="u", ts_ms=1_000 * n, price=price), Origin("t", 0, n, 0, 0), "s")
        for n, one in enumerate(types)
    ]


def told(*types: EventType, at_ms: int = 0, price: float | None = None) -> dict[str, float]:
    """Features by name."""
    return dict(zip(heads.FEATURES, heads.features(session(*types, price=price), at_ms).tolist(), strict=True))


def people(rng: np.random.Generator) -> tuple[heads.Floats, NDArray[np.bool_], NDArray[np.int64]]:
    """A quarter with something in the cart, who buy more; of all, those who look at much, too; four cuts a session."""
    rows = [session(*["view"] * int(rng.integers(1, 9)), *["cart"] * int(rng.random() < 0.25)) for _ in range(N // 4)]
    x = np.repeat([heads.features(one, 0) for one in rows], 4, 0)
    odds = -3 + 2 * x[:, heads.FEATURES.index("step_cart")] + x[:, heads.FEATURES.index("times_view")]
    return x, rng.random(N) < 1 / (1 + np.exp(-odds)), np.repeat(np.arange(N // 4), 4)


def test_features_tell_step_counts_and_what_was_done_since() -> None:
    """After a purchase the carts before it are spent."""
    said = told("cart", "checkout", "purchase", "view", "cart", at_ms=6 * HOUR_MS, price=np.e - 1)
    assert [said[name] for name in heads.STEP] == [0, 0, 0, 0, 1]
    assert said["times_cart"] == pytest.approx(np.log(3))
    assert said["cart_since_bought"] == pytest.approx(np.log(2))
    assert said["checkout_since_bought"] == said["rows_since_step"] == said["no_price"] == 0
    assert said["bought"] == said["price"] == said["hour_sin"] == pytest.approx(1)
    assert told("view", "cart", "view", "browse")["rows_since_step"] == pytest.approx(np.log(3))
    assert told("search")["step_browse"] == told("search")["no_price"] == 1


def test_purchase_head_is_calibrated_and_better_than_the_base_rates() -> None:
    """The mean probability is the share of purchases; looking at much is told beside the furthest step."""
    x, bought, whose = people(np.random.default_rng(0))
    head = heads.fit(x, bought, whose)
    assert head is not None
    assert head.of(x).mean() == pytest.approx(bought.mean(), abs=0.01)
    steps = x[:, : len(heads.STEPS)]
    rates = steps @ (steps.T @ bought / np.maximum(steps.sum(0), 1))
    assert heads.surprise(head.of(x), bought).mean() < heads.surprise(rates, bought).mean() - 0.01


@pytest.mark.parametrize("known", [heads.FEATURES, heads.FEATURES[:-1], ()])
def test_a_head_of_other_features_is_refused(known: tuple[str, ...], tmp_path: Path) -> None:
    """Versions of before told no features of it; the message says what to do."""
    words = texts.Texts(None, tmp_path, "w")
    net = network.Network(words.dim, [], network.NetworkSettings())
    head = heads.Purchase(weights=[0.0] * len(heads.FEATURES), features=known)
    folder = tmp_path / "v000001-abcdef"
    folder.mkdir()
    Predictor(Memory(), words, trained=Trained(net, Blend.flat(), purchase=head)).save(folder)
    if known == heads.FEATURES:
        assert Predictor.load(folder, words).version == folder.name
    else:
        with pytest.raises(ValueError, match=f"{folder.name} was made for other features .*; train a new version"):
            Predictor.load(folder, words)


def test_purchase_head_says_the_base_rates_where_it_knows_little() -> None:
    """Of few sessions many cuts: what they say beyond the furthest step is not believed; of no buyers nothing."""
    x, bought, whose = people(np.random.default_rng(1))
    steps = x[:, : len(heads.STEPS)]
    rates = steps @ ((steps.T @ bought + heads.PRIOR * bought.mean()) / (steps.sum(0) + heads.PRIOR))
    many, few = heads.fit(x, bought, whose), heads.fit(x, bought, whose // 250)
    assert many is not None
    assert few is not None
    assert np.abs(few.of(x) - rates).mean() < np.abs(many.of(x) - rates).mean() / 5
    assert heads.fit(x, np.zeros(N, bool), whose) is None
