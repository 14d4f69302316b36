"""Each baseline learns a law that it can see, gives the same answers twice, and knows no row that it was not given."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from featurestore.events import Event, Origin, Row
from trainer import baselines, texts
from trainer.baselines import counts, sequence
from trainer.baselines.baseline import Shares

ITEMS = 8
COUNTED = ("markov1", "markov2")
TRAINED = ("gru4rec", "sasrec")


def row(session: str, n: int, item: int | None, listing: int = 0) -> Row:
    """An item's row, or a listing's."""
    said = {"item_id": f"i{item}", "title": f"thing {item}"} if item is not None else {}
    event = Event(
        event_id=f"{session}-{n}", type="view" if said else "browse", user_id=session, ts_ms=n * 1_000,
        category=f"c{item % 2 if item is not None else listing}", **said,
    )  # fmt: skip
    return Row(event, Origin("t", 0, n, 0, 0), session)


def sessions(count: int, seed: int = 3) -> list[list[Row]]:
    """People who go from each item to the one after it, wherever they begin."""
    rng, made = random.Random(seed), []
    for s in range(count):
        begin = rng.randrange(ITEMS)
        made.append([row(f"s{s}", 10 * s + k, (begin + k) % ITEMS) for k in range(4)])
    return made


def taught(name: str, folder: Path, past: list[list[Row]]) -> baselines.Arm:
    """A baseline that has taken these sessions and was trained."""
    arm = baselines.build([name], texts.Texts(None, folder, "t"))[name]
    for rows in past:
        for n, one in enumerate(rows):
            for part in arm.parts:
                part.take(one, rows[:n])
    for part in arm.parts:
        part.train(60)
    return arm


def asked(arm: baselines.Arm, rows: list[Row]) -> Shares:
    """Its answer for one session."""
    return arm.items.answers([rows], [rows[-1].event.ts_ms])[0]


@pytest.mark.parametrize("name", COUNTED + TRAINED)
def test_learns_what_follows(tmp_path: Path, name: str) -> None:
    """After each item the one that always came next is the most probable; shares are shares, without the current."""
    arm = taught(name, tmp_path, sessions(150))
    for item in range(ITEMS):
        new = [row("new", 1, (item - 1) % ITEMS), row("new", 2, item)]
        made = asked(arm, new)
        assert max(made, key=made.__getitem__) == f"i{(item + 1) % ITEMS}"
        assert f"i{item}" not in made
        assert 0 < sum(made.values()) < 1 + 1e-6


@pytest.mark.parametrize("name", ["vmis-knn", "vmis-knn-listings"])
def test_neighbours_stay_among_what_goes_together(tmp_path: Path, name: str) -> None:
    """Two kinds of sessions that share one item: the others of the asker's kind come before those of the other kind."""
    past = [
        [row(f"s{s}", 10 * s + n, item) for n, item in enumerate(((0, 2, 4, 7), (1, 3, 5, 7))[s % 2])]
        for s in range(40)
    ]  # fmt: skip
    made = asked(taught(name, tmp_path, past), [row("new", 9_000, 2), row("new", 9_001, 7)])
    assert set(made) == {"i0", "i1", "i2", "i3", "i4", "i5"}
    assert min(made["i0"], made["i4"]) > max(made["i1"], made["i3"], made["i5"])
    assert abs(sum(made.values()) - 1) < 1e-9


@pytest.mark.parametrize("name", [name for name in baselines.ARMS if name != "textbook"])
def test_same_seed_same_answers(tmp_path: Path, name: str) -> None:
    """Taught twice alike, answers are alike to the last digit."""
    past, new = sessions(60), sessions(1, seed=8)[0][:3]
    first, second = (asked(taught(name, tmp_path, past), new) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("name", TRAINED)
def test_another_seed_is_another_network(name: str) -> None:
    """The seed is what it starts from."""
    kind = {"gru4rec": sequence.Gru, "sasrec": sequence.Attention}[name]
    made = []
    for seed in (1, 2):
        model = sequence.SequenceModel(kind, sequence.SequenceSettings(seed=seed, first=1))
        for rows in sessions(20):
            for one in rows:
                model.take(one, [])
        model.train(60)
        made.append(model.answers([sessions(1)[0]], [0])[0])
    assert made[0] != made[1]


@pytest.mark.parametrize("name", TRAINED)
def test_goes_on_where_it_stood(tmp_path: Path, name: str) -> None:
    """A second training learns an item that came new, and does not lose the law of before."""
    arm = taught(name, tmp_path, sessions(150))
    for s in range(240):
        for n in range(2):
            arm.items.take(row(f"n{s}", 5_000 + 10 * s + n, 0 if n == 0 else 99), [])
    arm.items.train(60)
    after = asked(arm, [row("new", 9_000, 0)])
    assert after["i99"] > 0.2
    made = asked(arm, [row("new", 9_000, 2), row("new", 9_001, 3)])
    assert max(made, key=made.__getitem__) == "i4"


def test_listings_say_what_comes(tmp_path: Path) -> None:
    """Where the item hangs on the list page before it, only what reads list pages finds it."""
    past = [[row(f"s{s}", 10 * s, None, listing=s % 2), row(f"s{s}", 10 * s + 1, s % 2 + 4)] for s in range(80)]
    new = [row("new", 9_000, None, listing=1)]
    for name in ("vmis-knn-listings", *TRAINED):
        made = asked(taught(name, tmp_path, past), new)
        assert max(made, key=made.__getitem__) == "i5"
    assert asked(taught("vmis-knn", tmp_path, past), new) == {}


def test_zero_shot_goes_by_the_text(tmp_path: Path) -> None:
    """An item whose words are the session's stands above one that shares none."""
    arm = baselines.build(["zero-shot"], texts.Texts(None, tmp_path, "t"))["zero-shot"]
    rows = []
    for n, title in enumerate(["red running shoe", "blue running shoe", "kettle of steel"]):
        event = Event(event_id=f"e{n}", type="view", user_id="u", ts_ms=n, item_id=f"i{n}", title=title)
        rows.append(Row(event, Origin("t", 0, n, 0, 0), "s"))
        arm.items.take(rows[-1], [])
    made = asked(arm, rows[:1])
    assert made["i1"] > made["i2"]
    assert "i0" not in made


def test_last_items_come_back_newest_first(tmp_path: Path) -> None:
    """The current item is no candidate; of the others the newest is the most probable."""
    arm = baselines.build(["last"], texts.Texts(None, tmp_path, "t"))["last"]
    assert asked(arm, [row("s", n, item) for n, item in enumerate((1, 2, 3, 2, 5))]) == {
        "i2": 0.5,
        "i3": 0.25,
        "i1": 0.125,
    }


def test_targets_are_the_next_different_item() -> None:
    """A repeat, a listing and an item's own second row are no answer; after the last item there is none."""
    said = sequence._Said(tokens=[1, 9, 1, 2, 1, 8], items=[1, -1, 1, 2, 1, -1])
    ((tokens, targets),) = sequence._parts(said)
    assert tokens[:7].tolist() == [1, 9, 1, 2, 1, 8, 0]
    assert targets[:6].tolist() == [2, 2, 2, 1, -1, -1]
    assert (targets[6:] == -1).all()


def test_padding_and_what_comes_later_play_no_part() -> None:
    """What a network says at a place is the same whatever lies behind it."""
    for kind in (sequence.Gru, sequence.Attention):
        network = kind(12, sequence.SequenceSettings()).eval()
        import torch

        tokens = torch.from_numpy(np.random.default_rng(1).integers(1, 12, (2, sequence.LENGTH)))
        tokens[1, :5] = tokens[0, :5]
        made = network(tokens)
        assert torch.allclose(made[0, :5], made[1, :5], atol=1e-5)
        assert not torch.allclose(made[0, 5:], made[1, 5:], atol=1e-3)


def test_markov_backs_off_to_what_it_knows() -> None:
    """Two names say more than one, one more than none; all shares sum to one."""
    chain = counts.Markov(2, "item")
    for _ in range(50):
        chain.learn(["a", "b"], "c")
        chain.learn(["x", "b"], "d")
    chain.learn([], "e")
    assert chain.probabilities(["a", "b"])["c"] > 0.9 > chain.probabilities(["new", "b"])["c"] > 0.4
    assert chain.probabilities(["new"]) == chain.probabilities([])
    for before in (["a", "b"], ["b"], []):
        assert abs(sum(chain.probabilities(before).values()) - 1) < 1e-9


def test_unknown_name_is_told(tmp_path: Path) -> None:
    """The message names what was asked for and what there is; the textbook's way asks for an encoder."""
    words = texts.Texts(None, tmp_path, "t")
    with pytest.raises(baselines.UnknownBaseline, match="'knn': cheap, all, none, or of last, popular"):
        baselines.build(["knn"], words)
    with pytest.raises(baselines.UnknownBaseline, match="set `encoder`"):
        baselines.build(["textbook"], words)
