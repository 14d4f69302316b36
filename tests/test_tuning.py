"""Tuning a language model made on the spot: it learns, transformers loads it, its digest names it."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, get_args

import msgspec
import numpy as np
import pytest

from deploy import retraining
from deploy.job import Job
from featurestore import lake, window
from featurestore.events import Event, Origin, Row
from trainer import contrastive, encoders, knobs, registry, retrain, texts, tuning

KEY = lake.PartitionKey("events@log", 0)
WORDS = ["red", "blue", "shoe", "boot", "hose", "spade", "sofa", "lamp"]
HAN = ["红", "蓝", "鞋", "靴", "管", "铲", "沙", "灯"]
PAIRS = [("red shoe", "blue boot"), ("hose", "spade"), ("sofa", "lamp")] * 20
HAN_PAIRS = [("红鞋", "蓝靴"), ("管", "铲"), ("沙", "灯")] * 20
MODES = tuple(m for m in get_args(knobs.Mode) if m != "frozen")
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


def bert(folder: Path, words: list[str]) -> None:
    """A BERT of two tiny layers with random weights and a WordPiece vocabulary of a few words."""
    import transformers

    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]), "utf-8")
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    transformers.BertModel(transformers.BertConfig(vocab_size=5 + len(words), **SMALL)).save_pretrained(folder)


def byte_pairs(folder: Path, special: list[str], **named: str) -> int:
    """A byte-level BPE tokenizer, learnt from the words; returns the size of its vocabulary."""
    import tokenizers
    import transformers

    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    learn = tokenizers.trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator([" ".join(pair) for pair in PAIRS], learn)
    transformers.PreTrainedTokenizerFast(tokenizer_object=made, **named).save_pretrained(folder)
    return int(made.get_vocab_size())


def made_encoder(family: str, folder: Path) -> str:
    """An encoder of this family, made on the spot: small, random weights."""
    import torch
    import transformers

    torch.manual_seed(0)
    if family == "bert":
        bert(folder, WORDS)
    elif family == "chinese bert":
        bert(folder, HAN)
    elif family == "roberta":
        size = byte_pairs(folder, ["<s>", "<pad>", "</s>", "<unk>", "<mask>"], bos_token="<s>", eos_token="</s>",
                          pad_token="<pad>", unk_token="<unk>", mask_token="<mask>")  # fmt: skip
        config = transformers.RobertaConfig(
            vocab_size=size, pad_token_id=1, bos_token_id=0, eos_token_id=2, max_position_embeddings=64, **SMALL
        )
        transformers.RobertaModel(config).save_pretrained(folder)
    else:
        size = byte_pairs(folder, ["<|endoftext|>"], bos_token="<|endoftext|>", eos_token="<|endoftext|>",
                          unk_token="<|endoftext|>")  # fmt: skip
        config = transformers.GPT2Config(
            vocab_size=size, n_embd=32, n_layer=2, n_head=2, n_positions=64, bos_token_id=0, eos_token_id=0
        )
        transformers.GPT2Model(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny BERT."""
    return made_encoder("bert", tmp_path_factory.mktemp("encoder"))


def learnt(pairs: list[tuple[str, str]] = PAIRS, **more: Any) -> tuning.Lessons:
    """Lessons of these pairs."""
    return tuning.Lessons(new=pairs, texts=sorted({text for pair in pairs for text in pair}), **more)


def quick(**more: Any) -> knobs.TuneSettings:
    """A tuning of a minute at most that learns fast and stops when it is done."""
    rate = 2e-2 if more.get("mode") == "adalora" else 3e-3
    said = {"layers": 1, "budget_ms": 60_000, "epochs": 15, "batch": 16, "learning_rate": rate, "validation": 0.0}
    return knobs.TuneSettings(**said | more)


def margin(words: texts.Texts, near: tuple[str, str] = ("hose", "spade"), far: str = "lamp") -> float:
    """How much nearer a text is to what followed it than to something else."""
    here, there, other = words.vectors([*near, far])
    return float(here @ there - here @ other)


@pytest.mark.parametrize("mode", MODES)
def test_tuning_pulls_what_follows_together(encoder: str, tmp_path: Path, mode: knobs.Mode) -> None:
    """After a few steps a text lies closer to what followed it than before, and the old encoder is untouched."""
    before = texts.Texts(encoder, tmp_path, "w")
    path = tuning.tune(encoder, learnt(), quick(mode=mode), tmp_path / "encoders")
    after = texts.Texts(path, tmp_path, "w")
    assert margin(after) > margin(before) + 0.1
    assert path.name == encoders.digest(str(path)) != encoders.digest(encoder)
    assert not list((tmp_path / "encoders").glob(".*"))


@pytest.mark.parametrize("mode", ["lora", "adalora", "top", "full"])
@pytest.mark.parametrize("family", ["roberta", "gpt-2", "chinese bert"])
def test_every_family_of_encoders_is_tuned_and_loaded_again(family: str, mode: knobs.Mode, tmp_path: Path) -> None:
    """WordPiece and BPE, with and without a token for padding and for masks, Latin and Han letters."""
    (tmp_path / "encoder").mkdir()
    start = made_encoder(family, tmp_path / "encoder")
    han = family == "chinese bert"
    near, far = (("管", "铲"), "灯") if han else (("hose", "spade"), "lamp")
    lessons = learnt(HAN_PAIRS if han else PAIRS)
    path = tuning.tune(start, lessons, quick(mode=mode, masked=0.2, epochs=8), tmp_path / "encoders")
    before, after = (texts.Texts(e, tmp_path, "w") for e in (start, path))
    assert margin(after, near, far) > margin(before, near, far)
    alone, beside = (after.vectors([near[0]]), texts.Texts(path, tmp_path / "b", "w").vectors([far * 9, near[0]])[1:])
    assert np.allclose(alone, beside, atol=1e-2), "padding changes a vector"
    said = tuning.told(path)
    assert said is not None
    assert len(said.masked) >= 1


def test_the_frozen_encoder_stays_the_one_it_was(encoder: str, tmp_path: Path) -> None:
    """Nothing is trained and nothing is written."""
    assert tuning.tune(encoder, learnt(), quick(mode="frozen"), tmp_path) == Path(encoder)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("optimiser", ["adamw", "sgd"])
@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_optimiser_and_schedule_learn(encoder: str, tmp_path: Path, optimiser: str, schedule: str) -> None:
    """Each of them lowers the loss from the first look to the last."""
    rate = 3e-3 if optimiser == "adamw" else 0.1
    settings = quick(mode="full", optimiser=optimiser, schedule=schedule, learning_rate=rate)
    said = tuning.told(tuning.tune(encoder, learnt(), settings, tmp_path))
    assert said is not None
    assert said.losses[-1][1] < said.losses[0][1]


def test_early_stopping_keeps_what_did_best(encoder: str, tmp_path: Path) -> None:
    """Where the newest pairs say the opposite, it stops early with the weights of its best look."""
    against = [(f"red {word}", other) for word, other in zip(WORDS, reversed(WORDS), strict=True)] * 4
    settings = quick(mode="full", validation=0.35, patience=2, epochs=100, learning_rate=1e-2)
    said = tuning.told(tuning.tune(encoder, learnt(PAIRS + against), settings, tmp_path))
    assert said is not None
    assert said.stopped == "early"
    best = min(range(len(said.validation)), key=lambda i: said.validation[i][1])
    assert len(said.validation) - 1 - best == 2


def test_the_budget_ends_a_tuning(encoder: str, tmp_path: Path) -> None:
    """A tuning without time makes no step and says why."""
    said = tuning.told(tuning.tune(encoder, learnt(), quick(mode="full", budget_ms=0), tmp_path))
    assert said is not None
    assert (said.steps, said.stopped) == (0, "budget")


def test_the_proximal_pull_keeps_weights_near_where_they_began(encoder: str, tmp_path: Path) -> None:
    """The stronger the pull, the shorter the way."""
    from safetensors.numpy import load_file

    start = load_file(Path(encoder) / "model.safetensors")
    ways = []
    for pull in (0.0, 10.0):
        path = tuning.tune(encoder, learnt(), quick(mode="full", proximal=pull), tmp_path / str(pull))
        end = load_file(path / "model.safetensors")
        ways.append(sum(float(((end[name] - start[name]) ** 2).sum()) for name in start))
    assert ways[1] < 0.5 * ways[0]


def test_old_pairs_are_replayed_and_new_ones_all_seen(encoder: str) -> None:
    """One pass has every new pair once and as many old ones as the setting says, of equal lengths together."""
    new, old = [(f"n{i}", "x" * (i % 9 + 1)) for i in range(40)], [(f"o{i}", "y") for i in range(100)]
    ids = {text: list(text) for pair in new + old for text in pair}
    settings = quick(batch=8, replay=0.5)
    made = list(contrastive.batches(new, old, ids, settings, random.Random(1)))  # type: ignore[arg-type]
    seen = [pair for batch in made for pair in batch]
    assert sorted(pair for pair in seen if pair in new) == sorted(new)
    assert sum(pair in old for pair in seen) == 20
    spread = [max(lengths) - min(lengths) for batch in made for lengths in [[len(b) for _, b in batch]]]
    assert sum(spread) / len(spread) < 3


def test_what_is_frozen_does_not_move(encoder: str, tmp_path: Path) -> None:
    """Weights whose names hold the words stay; words that no name holds, and freezing all, are errors."""
    from safetensors.numpy import load_file

    path = tuning.tune(encoder, learnt(), quick(mode="full", frozen=("embeddings", "layer.0")), tmp_path)
    start, end = load_file(Path(encoder) / "model.safetensors"), load_file(path / "model.safetensors")
    moved = {name for name in start if not np.array_equal(start[name], end[name])}
    assert moved
    assert not [name for name in moved if "embeddings" in name or "layer.0" in name]
    with pytest.raises(ValueError, match=r"tune\.frozen = 'layr\.0' is in no name"):
        tuning.tune(encoder, learnt(), quick(mode="full", frozen=("layr.0",)), tmp_path)
    with pytest.raises(ValueError, match="leaves nothing to train"):
        tuning.tune(encoder, learnt(), quick(mode="top", frozen=("encoder",)), tmp_path)


def test_a_masked_warm_up_lowers_its_loss(encoder: str, tmp_path: Path) -> None:
    """The encoder learns the shop's language from texts without labels."""
    settings = quick(mode="full", masked=0.9, epochs=60, max_steps=1)
    said = tuning.told(tuning.tune(encoder, learnt(), settings, tmp_path))
    assert said is not None
    assert np.mean(said.masked[-10:]) < np.mean(said.masked[:10])


def test_the_path_of_a_gpu_runs_on_a_cpu(encoder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """bfloat16, a fused optimiser, batches by length and a compiled model learn the same thing on a CPU."""
    import torch

    monkeypatch.setattr(encoders, "half_is_faster", lambda tokenizer, model: True)
    compiled = []

    def compile_(model: Any, dynamic: bool) -> Any:
        compiled.append(dynamic)
        return real(model, dynamic=dynamic, backend="aot_eager")  # all of it but the C++ compiler

    real = torch.compile
    monkeypatch.setattr(torch, "compile", compile_)
    path = tuning.tune(encoder, learnt(), quick(mode="full", compile="on", epochs=8), tmp_path / "encoders")
    assert compiled == [True]
    assert margin(texts.Texts(path, tmp_path, "w")) > margin(texts.Texts(encoder, tmp_path, "w"))


@pytest.mark.parametrize(
    ("family", "said", "wrong"),
    [
        ("bert", ["red shoe", "blue boot"], None),
        ("bert", ["красный ботинок", "синий"], "100% of its tokens unknown"),
        ("gpt-2", ["красный ботинок"], "pieces a character"),
        ("gpt-2", ["hose spade sofa"], None),
        ("chinese bert", ["红鞋 蓝靴"], None),
        ("chinese bert", ["灯罩子"], "unknown"),
    ],
)
def test_a_script_that_the_tokenizer_breaks_up_is_said(
    family: str, said: list[str], wrong: str | None, tmp_path: Path
) -> None:
    """Unknown tokens and words that are spelt out are named with encoders that know many languages."""
    words = texts.Texts(made_encoder(family, tmp_path), tmp_path, "w")
    words.vectors(said)
    told = words.broken_up()
    assert (told is None) == (wrong is None)
    if wrong is not None and told is not None:
        assert wrong in told
        assert "--set encoder=NAME" in told
        assert "multilingual" in told


def test_vectors_are_shared_by_shards(encoder: str, tmp_path: Path) -> None:
    """A text that one process embedded and saved is read by the next, not embedded again."""
    first = texts.Texts(encoder, tmp_path, "a")
    vector = first.vectors(["red shoe"])
    first.save()
    second = texts.Texts(encoder, tmp_path, "b")
    assert "red shoe" in second.known
    assert np.allclose(second.vectors(["red shoe"]), vector)


def test_a_tuning_that_did_not_pass_leaves_no_encoder(encoder: str, tmp_path: Path) -> None:
    """On noise nothing can be better: the verdict has both arms, and no encoder is there but the one in use."""
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
    recipe = retrain.Recipe(kind="tune", tune=knobs.TuneSettings(max_steps=5, batch=8))
    verdict = retrain.run(the_lake.cover(), out.path(first), recipe, policy, 0, texts=words, out=out)
    assert not verdict.accepted
    assert set(verdict.metrics) == {"candidate", "champion"}
    assert [path.name for path in (tmp_path / "encoders").iterdir()] == [words.digest]


def shop_rows(n: int) -> list[Row]:
    """People who go from each item to the next one of the list."""
    rows = []
    for i in range(n):
        name = WORDS[(i // 50) % len(WORDS)]
        event = Event(
            event_id=f"e{i}", type="view", user_id=f"u{i % 50}", ts_ms=1_700_000_000_000 + 3_000 * i, item_id=name,
            title=name, category="all",
        )  # fmt: skip
        rows.append(Row(event, Origin(KEY.topic, 0, i, 0, event.ts_ms), f"s{i % 50}"))
    return rows


def test_a_version_is_made_with_what_was_prepared_beside_the_retrains(encoder: str, tmp_path: Path) -> None:
    """The encoder is judged on cuts that it has not seen either, and its folder is one that transformers loads."""
    import transformers

    the_lake, out = lake.Lake(tmp_path, "w"), registry.Registry(tmp_path)
    policy = window.WindowPolicy(horizon_next_ms=600_000, horizon_purchase_ms=600_000, n_min=50)
    said: dict[str, Any] = {
        "shared": str(tmp_path), "name": "t", "encoder": encoder, "policy": policy, "forgotten": frozenset(),
        "logs": "text", "tune": quick(epochs=2), "network": {"epochs": 1}, "tensorboard": str(tmp_path / "board"),
    }  # fmt: skip
    rows = shop_rows(3_000)
    the_lake.write_rows(KEY, 0, rows[:1_500])
    first = retraining.judged(Job(kind="refresh", champion=None, since={}, **said))
    assert first.version is not None
    folder = out.verify(first.version)
    model = transformers.AutoModel.from_pretrained(folder / "encoder")
    assert model.config.hidden_size == 32
    assert transformers.AutoTokenizer.from_pretrained(folder / "encoder").mask_token == "[MASK]"
    card = (folder / "README.md").read_text()
    assert all(word in card for word in ("| log loss (nats) | ", ", n = ", "## Limits", "read up to offset"))
    the_lake.write_rows(KEY, 1_500, rows[1_500:])
    said |= {"champion": first.version, "since": first.data_offsets}
    prepared = retraining.prepared(Job(kind="prepare", **said))
    assert prepared.encoded is not None
    told = tuning.told(tmp_path / "encoders" / prepared.encoded)
    assert told is not None
    verdict = retraining.judged(Job(kind="tune", encoded=prepared.encoded, **said))
    assert set(verdict.metrics) == {"candidate", "champion"}
    made = window.examples(the_lake.cover(), msgspec.structs.replace(policy, since={KEY: 1_500}))
    assert told.until_ms < made.at_ms[made.judge].min()
    assert {p.name for p in (tmp_path / "board").iterdir()} == {"refresh", "tune", f"encoder-{prepared.encoded}"}
