"""Tuning a language model made on the spot: it learns, transformers loads it, its digest names it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from trainer import texts, tuning

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


def test_tuning_pulls_what_follows_together(encoder: str, tmp_path: Path) -> None:
    """After a few steps a text lies closer to what followed it than before, and the old encoder is untouched."""
    pairs = [("red shoe", "blue boot"), ("hose", "spade"), ("sofa", "lamp")] * 20
    before = texts.Texts(encoder, tmp_path, "w")
    settings = tuning.TuneSettings(budget_ms=20_000, max_steps=60, batch=16, learning_rate=3e-3)
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
