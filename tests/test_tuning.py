"""Tuning a language model made on the spot: it learns, transformers loads it, its digest names it."""

from __future__ import annotations

import random
from pathlib import Path
from typing import get_args

import msgspec
import numpy as np
import pytest

from featurestore import lake, window
from featurestore.events import Event, Origin, Row
from trainer import registry, retrain, texts, tuning

KEY = lake.PartitionKey("events@log", 0)
WORDS = ["red", "blue", "shoe", "boot", "hose", "spade", "sofa", "lamp"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A BERT of two tiny layers with random weights and a vocabulary of a few words."""
    import torch
    import transformers

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("encoder")
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    config = transformers.BertConfig(
        vocab_size=5 + len(WORDS), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    transformers.BertModel(config).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("mode", get_args(tuning.Mode))
def test_tuning_pulls_what_follows_together(encoder: str, tmp_path: Path, mode: tuning.Mode) -> None:
    """After a few steps a text lies closer to what followed it than before, and the old encoder is untouched."""
    pairs = [("red shoe", "blue boot"), ("hose", "spade"), ("sofa", "lamp")] * 20
    before = texts.Texts(encoder, tmp_path, "w")
    settings = tuning.TuneSettings(mode=mode, layers=1, budget_ms=60_000, max_steps=60, batch=16, learning_rate=3e-3)
    path = tuning.tune(encoder, pairs, settings, tmp_path / "encoders")
    after = texts.Texts(path, tmp_path, "w")

    def margin(words: texts.Texts) -> float:
        hose, spade, lamp = words.vectors(["hose", "spade", "lamp"])
        return float(hose @ spade - hose @ lamp)

    assert margin(after) > margin(before) + 0.1
    assert path.name == texts.digest(str(path)) != texts.digest(encoder)
    assert not list((tmp_path / "encoders").glob(".*"))


def test_vectors_are_shared_by_shards(encoder: str, tmp_path: Path) -> None:
    """A text that one process embedded and saved is read by the next, not embedded again."""
    first = texts.Texts(encoder, tmp_path, "a")
    vector = first.vectors(["red shoe"])
    first.save()
    second = texts.Texts(encoder, tmp_path, "b")
    assert "red shoe" in second.known
    assert np.allclose(second.vectors(["red shoe"]), vector)


def test_a_tuning_that_did_not_pass_leaves_no_encoder(encoder: str, tmp_path: Path) -> None:
    """On noise nothing can be better: the verdict has both arms, and the folder of encoders is empty again."""
    rng = random.Random(0)
    rows = []
    for n in range(2_000):
        event = Event(
            event_id=f"e{n}", type="view", user_id=f"u{n % 50}", ts_ms=1_700_000_000_000 + 3_000 * n,
            item_id=(name := " ".join(rng.choice(WORDS) for _ in range(2))), title=name, category="all",
        )  # fmt: skip
        rows.append(Row(event, Origin(KEY.topic, 0, n, 0, event.ts_ms), f"s{n % 50}"))
    the_lake, out = lake.Lake(tmp_path, "w"), registry.Registry(tmp_path)
    words = texts.Texts(encoder, tmp_path, "w")
    policy = window.WindowPolicy(horizon_next_ms=600_000, horizon_purchase_ms=600_000, n_min=50)
    the_lake.write_rows(KEY, 0, rows[:1_000])
    first = retrain.run(the_lake.cover(), None, retrain.Recipe(), policy, 0, texts=words, out=out).version
    assert first is not None
    the_lake.write_rows(KEY, 1_000, rows[1_000:])
    policy = msgspec.structs.replace(policy, since={KEY: 1_000})
    recipe = retrain.Recipe(kind="tune", tune=tuning.TuneSettings(max_steps=5, batch=8))
    verdict = retrain.run(the_lake.cover(), out.path(first), recipe, policy, 0, texts=words, out=out)
    assert not verdict.accepted
    assert set(verdict.metrics) == {"candidate", "champion"}
    assert list((tmp_path / "encoders").iterdir()) == []
