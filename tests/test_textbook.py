"""The textbook's way learns what follows what, and answers like the other baselines."""

from __future__ import annotations

from pathlib import Path

import pytest

from featurestore.events import Event, Origin, Row
from tests.test_tuning import made_encoder
from trainer import textbook

NAMES = ["blue boot", "spade", "lamp"]
FOLLOWS = {"red shoe": "blue boot", "hose": "spade", "sofa": "lamp"}


def decoder(folder: Path) -> str:
    """A tiny GPT-2 with its head."""
    import transformers

    path = made_encoder("gpt-2", folder)
    config = transformers.AutoConfig.from_pretrained(path)
    transformers.GPT2LMHeadModel(config).save_pretrained(path)
    return path


@pytest.mark.parametrize("way", ["classifier", "generator"])
def test_it_learns_what_follows_what(way: str, tmp_path: Path) -> None:
    """What came next in training is ranked first, and the probabilities of all candidates sum to one."""
    model = (
        textbook.Classifier(made_encoder("bert", tmp_path), NAMES, learning_rate=5e-3)
        if way == "classifier"
        else textbook.Generator(decoder(tmp_path), NAMES, learning_rate=2e-3)
    )
    said, came = [*FOLLOWS] * 16, [*FOLLOWS.values()] * 16
    epochs = 12 if way == "classifier" else 100
    assert model.learn(said, came, cpu_seconds=60, epochs=epochs) == epochs * len(said)
    assert {text: model.ranked(text, 1)[0] for text in FOLLOWS} == FOLLOWS
    assert sum(model.probability("hose", name) for name in NAMES) == pytest.approx(1, abs=1e-4)
    assert model.learn(said, came, cpu_seconds=0) == 0


def test_a_session_is_one_text_newest_first() -> None:
    """What a row did and said, the newest first."""
    rows = [
        Row(Event(event_id=str(i), type="view", user_id="u", ts_ms=i, item_id=t, title=t), Origin("t", 0, i, 0, i), "s")
        for i, t in enumerate(("red shoe", "hose"))
    ]
    assert textbook.session_text(rows) == "view hose ; view red shoe"
