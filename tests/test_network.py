"""The session network: what it says before training, what it learns, and that it comes back as it was saved."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from featurestore.events import Event, EventType, Origin, Row
from trainer import learning, network
from trainer.network import Network, NetworkSettings
from trainer.texts import NAME_LENGTH, NAMED, Texts

SETTINGS = NetworkSettings(width=16, epochs=20)
NAMES = [
    f"{colour} {thing}" for colour in ("red", "blue", "green") for thing in ("running shoe", "garden hose", "lamp")
]


def row(n: int, item: str | None = None, *, type_: EventType = "view", query: str | None = None) -> Row:
    """Something that was done in the n-th minute."""
    event = Event(event_id=f"e{n}", type=type_, user_id="u", ts_ms=60_000 * n, item_id=item, title=item, query=query)
    return Row(event, Origin("t@log", 0, n, 0, 0), "s")


@pytest.fixture
def words(tmp_path: Path) -> Texts:
    """Hashed n-grams: no weights."""
    return Texts(None, tmp_path, "w")


def fresh(words: Texts, settings: NetworkSettings = SETTINGS) -> Network:
    """A network that nothing was learnt by."""
    made = Network(words.dim, NAMES, settings)
    made.start_at(words.vectors(NAMES))
    return made


def lessons(words: Texts, net: Network, pairs: list[tuple[str, str]]) -> learning.Lessons:
    """Sessions of one item each, and what came next."""
    columns = {name: n for n, name in enumerate(NAMES)}
    said = network.sequences([[row(1, a)] for a, _ in pairs], [60_000] * len(pairs), words, net.words)
    target, current = (np.array([columns[pair[k]] for pair in pairs]) for k in (1, 0))
    return learning.Lessons(said=said, target=target, current=current, names=NAMES, vectors=words.vectors(NAMES))


def ranked(words: Texts, net: Network, session: list[Row]) -> list[str]:
    """Items by what the network says of a session."""
    said = network.sequences([session], [session[-1].event.ts_ms], words, net.words)
    logits = net.near(net.headings(said), net.placed(words.vectors(NAMES), NAMES))[0]
    return [NAMES[i] for i in np.argsort(-logits)]


def test_before_training_it_is_the_zero_shot_recommender(words: Texts) -> None:
    """A query ranks the items first whose texts are nearest."""
    assert ranked(words, fresh(words), [row(1, type_="search", query="garden hoses")])[0].endswith("garden hose")


@pytest.mark.parametrize("full", [20_000, 4])
def test_training_learns_what_follows_whatever_the_texts_say(words: Texts, full: int) -> None:
    """After `red lamp` comes `blue garden hose`, with the softmax over all items and over a sample of them."""
    settings = NetworkSettings(width=16, epochs=60, full_softmax=full, sampled=4)
    follows = dict(zip(NAMES, NAMES[4:] + NAMES[:4], strict=True))
    net = fresh(words, settings)
    pairs = list(follows.items()) * 100
    learning.train(net, lessons(words, net, pairs), settings.epochs)
    for here, there in follows.items():
        assert next(name for name in ranked(words, net, [row(1, here)]) if name != here) == there


def test_only_the_newest_tokens_count_and_repeats_collapse(words: Texts) -> None:
    """A click and the view of the same item are one token; what is older than `LENGTH` tokens is not seen."""
    net = fresh(words)
    old = [row(n, NAMES[n % 9]) for n in range(40)]
    doubled = [*old, row(40, NAMES[3]), row(40, NAMES[3])]
    said = network.sequences([doubled, doubled[20:]], [60_000 * 40] * 2, words, net.words)
    assert np.array_equal(said.text[0], said.text[1])
    assert said.own[0] == said.own[1]
    assert said.own[0][NAMES[3]] == 0
    assert (said.text[0] > 0).all()
    heading = net.headings(said)
    assert np.allclose(heading[0], heading[1])


def test_numpy_says_where_torch_says_that_sessions_are_heading(words: Texts) -> None:
    """Of sessions of all lengths together, before training and after it; each alone says the same."""
    net = fresh(words)
    long = [row(n // 2, NAMES[n * n % 9], type_=("view", "cart")[n % 2]) for n in range(40)]
    sessions = [long[:n] for n in (1, 2, 5, 12, 40)] + [[row(1, type_="search", query="red hose")]]
    for _ in range(2):
        said = network.sequences(sessions, [60_000 * 21] * 6, words, net.words)
        projected = net.projected(net.reduced(said.table))
        with torch.inference_mode():
            told = net.eval().heading(projected, *map(torch.from_numpy, said.batch(slice(None)))).numpy()
        assert net.headings(said) == pytest.approx(told, abs=1e-6)
        for k, session in enumerate(sessions):
            alone = network.sequences([session], [60_000 * 21], words, net.words)
            assert net.headings(alone)[0] == pytest.approx(told[k], abs=1e-6)
        learning.train(net, lessons(words, net, [(a, NAMES[0]) for a in NAMES[1:]] * 50), 3)


def test_it_comes_back_as_it_was_and_grows_without_forgetting(words: Texts) -> None:
    """Weights told and read give the same answers; new words change nothing before they are learnt."""
    net = fresh(words)
    learning.train(net, lessons(words, net, [(a, NAMES[0]) for a in NAMES[1:]] * 50), 3)
    again = Network.of(net.weights(), list(net.words), net.settings, net.trained_ms)
    grown = net.grown(["a new one", NAMES[0]])
    session = [row(1, NAMES[5]), row(2, NAMES[7])]
    assert ranked(words, net, session) == ranked(words, again, session) == ranked(words, grown, session)
    assert len(grown.words) == len(NAMES) + 1


def test_a_refresh_grows_no_surer_of_what_it_has_seen(words: Texts) -> None:
    """The scale of the logits is learnt once; the next training moves everything else."""
    pairs = [(a, NAMES[0]) for a in NAMES[1:]] * 50
    net = learning.train(fresh(words), lessons(words, fresh(words), pairs), 3)
    net.trained_ms, scale, onward = 1, net.factor, net.onward.detach().clone()
    assert scale != SETTINGS.scale
    learning.train(net, lessons(words, net, pairs), 3)
    assert net.factor == scale
    assert not onward.equal(net.onward)


def test_ids_without_text_are_told_apart(words: Texts) -> None:
    """Nothing is read into an id: ids that look alike are as far apart as others, the same in every process."""
    ids = [NAMED + f"sku-100{n}" for n in range(20)]
    alike = words.vectors(ids) @ words.vectors(ids).T
    assert np.abs(alike / NAME_LENGTH**2 - np.eye(20)).max() < 0.4
    assert np.array_equal(words.vectors(ids[:1]), Texts(None, words.shared, "other").vectors(ids[:1]))


def test_two_passes_teach_a_shop_of_ids(words: Texts) -> None:
    """Where there is no text, directions that mean nothing are soon outweighed by what follows what."""
    ids, n = [f"sku-{k}" for k in range(300)], 300
    net, vectors = Network(words.dim, ids, NetworkSettings(width=32)), words.vectors([NAMED + name for name in ids])
    net.start_at(vectors)
    follows, here = np.random.default_rng(1).permutation(n), np.arange(n).repeat(30)
    said = network.sequences([[id_row(ids[k])] for k in here], [60_000] * len(here), words, net.words)
    told = learning.Lessons(said=said, target=follows[here], current=here, names=ids, vectors=vectors)
    learning.train(net, told, 2)
    headings = net.headings(network.sequences([[id_row(name)] for name in ids], [60_000] * n, words, net.words))
    near = net.near(headings, net.placed(vectors, ids)) - 1e3 * np.eye(n)
    assert (near.argmax(1) == follows).mean() > 0.9


def id_row(item: str) -> Row:
    """An item of which nothing is known but its id."""
    return Row(
        Event(event_id="e", type="view", user_id="u", ts_ms=60_000, item_id=item), Origin("t@log", 0, 0, 0, 0), "s"
    )
