"""The memory: what it counts, what it proposes, and that a version holds no user."""

from __future__ import annotations

import copy
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from msgspec import structs

from featurestore.events import Event, EventType, Origin, Row, Session
from trainer import followers, memory, nearest, network, predictor, texts
from trainer.blend import FEATURES, Blend
from trainer.followers import Followers
from trainer.memory import EVIDENCE, Memory

HOUR_MS = 3_600_000


def row(
    n: int, item: str | None, *, user: str = "u-secret", type_: EventType = "view", category: str | None = None
) -> Row:
    """What a user did at the n-th second."""
    event = Event(
        event_id=f"e{n}", type=type_, user_id=user, ts_ms=1_000 * n, item_id=item, title=item, category=category
    )
    return Row(event, Origin("t@log", 0, n, 0, 0), f"s-{user}")


def told(made: Memory, rows: list[Row], at_ms: int = 100_000) -> dict[str, dict[str, float]]:
    """Evidence by name."""
    found, values = made.evidence(rows, at_ms)
    return {made.names[w]: dict(zip(EVIDENCE, v, strict=True)) for w, v in zip(found, values.tolist(), strict=True)}


def test_evidence_names_what_follows_what_is_near_and_what_was_touched() -> None:
    """After `a` came `b`; `c` shares the shelf; `d` was touched before; `a`, the current one, is left out."""
    made, n = Memory(), 0
    for user in ("u1", "u2", "u3"):
        for item, shelf in (("a", "x"), ("b", "y")):
            made.take(row(n := n + 1, item, user=user, category=shelf))
    made.take(row(n := n + 1, "c", user="u4", category="x"))
    mine = [row(n := n + 1, "d", category="z"), row(n := n + 1, "a", category="x")]
    for one in mine:
        made.take(one)
    said = told(made, mine)
    assert "a" not in said
    assert said["b"]["follows"] > 0
    assert said["b"]["neighbours"] > 0
    assert said["c"]["category"] > 0 == said["b"]["category"]
    assert said["d"]["in_session"] > 0 == said["c"]["in_session"]
    assert told(made, mine) == said  # nothing is left behind by asking


def test_crossings_lead_from_where_a_session_was_to_the_next_different_item() -> None:
    """From a listing or an item, into the same category too; an item that is met again is no step."""
    made, n = Memory(), 0
    for item, shelf in (
        ("a", "x"),
        ("a", "x"),
        (None, "y"),
        ("a", "x"),
        ("b", "y"),
        ("c", "y"),
        (None, "z"),
        ("d", "x"),
    ):
        made.take(row(n := n + 1, item, type_="view" if item else "browse", category=shelf))

    def after(shelf: str) -> dict[str, float]:
        found = made.crossing([row(0, None, type_="browse", category=shelf)])
        assert made.names[found.left] == f"c:{shelf}"
        return {made.names[word]: float(times) for word, times in zip(found.after, found.times, strict=True)}

    assert after("x") == {"c:y": 1}  # a → b, whatever was browsed before a came again
    assert after("y") == {"c:y": 1}  # b → c
    assert after("z") == {"c:x": 1}  # from the listing to d
    nowhere = made.crossing([row(0, None, type_="browse", category="never seen")])
    assert nowhere.left == -1
    assert not len(nowhere.after)


def test_popularity_halves_in_a_day_and_does_not_mind_who_came_first() -> None:
    """A click a day ago counts half of one now."""
    made = Memory()
    for at_ms, item in ((24 * HOUR_MS, "new"), (0, "old"), (0, "new")):
        made.take(row(at_ms // 1_000, item, user=f"u{at_ms}"))
    said = told(made, [row(0, "elsewhere", user="v")], at_ms=24 * HOUR_MS)
    assert said["new"]["popularity"] == pytest.approx(1.5)
    assert said["old"]["popularity"] == pytest.approx(0.5)


def test_followers_keep_the_frequent_ones_in_bounded_room() -> None:
    """Among ten thousand rare followers the three frequent ones stand with at least their true counts."""
    made, rng = Followers(), random.Random(1)
    for n in range(12_000):
        item = n % 3 if rng.random() < 0.2 else 10 + rng.randrange(10_000)
        made.add(np.array([20_000], np.int32), item, np.ones(1, np.float32))
    said = made.state()
    assert said["size"][20_000] == len(said["who"]) == followers.FOLLOWERS
    best = said["who"][np.argsort(-said["count"])[:3]]
    assert set(best.tolist()) == {0, 1, 2}
    assert said["count"].sum() == pytest.approx(12_000)


def market(n: int, rng: random.Random, first: int = 0) -> list[Row]:
    """A shop whose items change bit by bit, with one search in three that nobody made before."""
    rows = []
    for k in range(first, first + n):
        user = f"u{rng.randrange(20)}"
        one = row(k, f"i{k // 200 + rng.randrange(20)}", user=user, category=f"c{rng.randrange(4)}")
        if k % 3 == 0:
            event = Event(event_id=f"e{k}", type="search", user_id=user, ts_ms=1_000 * k, query=f"never {k}")
            one = Row(event, one.origin, one.session_id)
        rows.append(one)
    return rows


def test_words_are_given_back_and_the_newest_item_is_always_learnt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of searches go through room for 100 words: whatever is said is known afterwards, and counts."""
    monkeypatch.setattr(memory, "WORDS", 100)
    made, rows = Memory(), market(6_000, random.Random(3))
    for one in rows:
        made.take(one)
        assert memory.token(one) in made.words
        assert len(made.words) <= len(made.names) <= 100
    latest = {memory.token(one) for one in rows[-300:] if one.event.item_id}
    assert latest <= made.words.keys()
    assert made.words == {name: i for i, name in enumerate(made.names) if name}
    assert set(made.items) == {made.names[i] for i in np.flatnonzero(made.item)}
    assert {made.names[made.category[made.words[item]]] for item in made.items} <= {f"c:c{k}" for k in range(4)}


def test_what_was_said_often_outlives_what_was_said_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """An item of the past that many looked at stays; one that one person saw goes, and queries before either."""
    monkeypatch.setattr(memory, "WORDS", 30)
    made = Memory()
    for n, item in enumerate(["often"] * 40 + ["once"]):
        made.take(row(n, item, user=f"u{n}"))
    for n in range(20):
        event = Event(event_id=f"q{n}", type="search", user_id="v", ts_ms=1_000 * (50 + n), query=f"q{n}")
        made.take(Row(event, Origin("t@log", 0, n, 0, 0), "s-v"))
    for n in range(9):
        made.take(row(100 + n, f"new {n}"))
    assert {"often", "once"} <= made.words.keys()
    assert sum(name.startswith("q:") for name in made.words) < 20
    for n in range(200):
        made.take(row(200 + n, f"newer {n}"))
    assert "often" in made.words
    assert "once" not in made.words


def test_searches_make_room_for_searches_and_for_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of thousands that were made once a bounded number stays; one that is made again and again, and all items do."""
    monkeypatch.setattr(memory, "SEARCHES", 20)
    made = Memory()
    for n in range(3_000):
        query = "often" if n % 10 == 0 else f"once {n}"
        event = Event(event_id=f"q{n}", type="search", user_id=f"u{n // 5}", ts_ms=1_000 * n, query=query)
        made.take(Row(event, Origin("t@log", 0, n, 0, 0), f"s-{n // 5}"))
        made.take(row(n, f"i{n // 10}", user=f"u{n // 5}"))
        assert made.searches == sum(name.startswith("q:") for name in made.words) <= 20
    assert {f"i{n}" for n in range(300)} | {"q:often"} <= made.words.keys()


def test_a_number_that_is_used_again_brings_nothing_of_its_past(monkeypatch: pytest.MonkeyPatch) -> None:
    """After `a` came `b`; both are forgotten, and whoever has their numbers now has no followers and no count."""
    monkeypatch.setattr(memory, "WORDS", 8)
    made = Memory()
    for n, item in enumerate(["a", "b"]):
        made.take(row(n, item, user="u"))
    numbers = {made.words["a"], made.words["b"]}
    for n in range(30):
        made.take(row(10 + n, f"new {n}", user=f"v{n}"))  # each alone in its session: nothing follows anything
    assert numbers <= {made.words[name] for name in made.items}
    assert made.follows.state()["size"].sum() == 0
    live = sorted(made.words.values())
    assert made.popular[live].max() < 1.001
    assert (made.neighbours.count[live] == 1).all()
    assert sorted(made.neighbours.state()["tokens"].tolist()) == live


@pytest.mark.parametrize("listed", [5, 50_000])
def test_a_predictor_proposes_no_forgotten_item(listed: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its table of items follows: one column for each item that there is, with its own text and word."""
    monkeypatch.setattr(memory, "WORDS", 40)
    monkeypatch.setattr(nearest, "LISTED", listed)
    words, rng = texts.Texts(None, tmp_path, "w"), random.Random(5)
    net = network.Network(words.dim, [], network.NetworkSettings())
    net.start_at(words.vectors([f"i{k}" for k in range(200)]))
    made = predictor.Predictor(Memory(), words, trained=predictor.Trained(net, Blend.flat()))
    for k in range(0, 3_000, 10):
        rows = market(10, rng, k)
        made.learn(rows)
        if k % 30 == 0:
            mine = [one for one in rows if one.event.item_id][-1:]
            said, headings = made.headings([mine], [1_000 * k])
            found, _ = made.case(mine, 1_000 * k, headings[0], said.own[0])
            assert made.memory.item[found].all()
            assert isinstance(made.among, nearest.Lists) == (made.items.size > listed)
            assert {made.memory.names[word] for word in made.items.words} == set(made.memory.items)
            assert made.items.columns(made.items.words).tolist() == list(range(made.items.size))
            for word, vector in zip(made.items.words, made.items.vectors, strict=True):
                name = made.memory.names[word]
                assert np.array_equal(vector, words.vectors([predictor.item_text(name, made.memory.items[name])])[0])


def test_sessions_predicted_together_are_predicted_as_alone(tmp_path: Path) -> None:
    """More of them than share one product: each gets its own items, with the same probabilities up to rounding."""
    words, rng = texts.Texts(None, tmp_path, "w"), random.Random(6)
    net = network.Network(words.dim, [], network.NetworkSettings())
    net.start_at(words.vectors([f"i{k}" for k in range(40)]))
    by_network = structs.replace(Blend.flat(), item=[float(name == "network") for name in FEATURES])
    made = predictor.Predictor(Memory(), words, trained=predictor.Trained(net, by_network))
    rows = market(600, rng)
    made.learn(rows)
    asked = [
        Session(f"s{k}", "u", one.event.ts_ms, one.event.ts_ms, [one])
        for k, one in enumerate(rows[: 3 * predictor.TOGETHER])
        if one.event.item_id
    ]
    assert len(asked) > predictor.TOGETHER
    together = made.predict(asked, [700_000] * len(asked))
    for session, said in zip(asked, together, strict=True):
        (alone,) = made.predict([session], [700_000])
        assert dict(said.items) == pytest.approx(dict(alone.items), rel=1e-4)
    assert len({said.items[0] for said in together}) > 10


def test_memories_that_forgot_go_on_alike_after_a_reload(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Saved at any point and loaded, every array and number is the same after any more rows."""
    monkeypatch.setattr(memory, "WORDS", 60)
    rng = random.Random(4)
    made = Memory()
    for part in range(12):
        made.learn(market(97, rng, 97 * part))
        folder = tmp_path / str(part)
        folder.mkdir()
        made.save(folder)
        again, more = Memory.load(folder), market(150, random.Random(part), 97 * (part + 1))
        straight = Memory.load(folder) if part % 2 else copy.deepcopy(made)
        for one in (straight, again):
            one.learn(more)
        assert straight.state() == again.state()
        ours, theirs = straight.arrays(), again.arrays()
        n = len(again.names)
        for name, value in ours.items():
            short = slice(None, n) if name.split(".")[-1] in ("item", "category", "count", "size") else slice(None)
            assert np.array_equal(np.trim_zeros(value[short]), np.trim_zeros(theirs[name][short])), name
        assert told(straight, more[-3:], 900_000) == told(again, more[-3:], 900_000)


def test_a_version_holds_no_user_and_comes_back_whole(tmp_path: Path) -> None:
    """No byte of a user id is in the files; the same evidence afterwards, and the same after learning more."""
    made, rng = Memory(), random.Random(2)
    rows = [
        row(n, f"i{rng.randrange(30)}", user=f"u-secret-{rng.randrange(9)}", category=f"c{n % 4}") for n in range(500)
    ]
    made.learn(rows)
    made.save(tmp_path)
    assert not any(b"secret" in file.read_bytes() for file in tmp_path.iterdir())
    again = Memory.load(tmp_path)
    assert again.seen == made.seen
    more = [row(500 + n, f"i{rng.randrange(60)}", user=f"v{n % 3}", category="c9") for n in range(100)]
    for one in (made, again):
        assert one.learn(rows) == 0
        one.learn(more)
    assert told(made, more[-3:], 600_000) == told(again, more[-3:], 600_000)


def test_nothing_is_compiled_while_a_shopper_waits(tmp_path: Path) -> None:
    """On a fresh machine the first prediction took a second: after the rehearsal nothing new is compiled."""
    code = f"""
from pathlib import Path
from featurestore.events import Event, Origin, Row, Session
from trainer import blend, categories, followers, memory, nearest, neighbours, network, predictor, texts

def compiled():
    modules = (blend, categories, followers, memory, nearest, neighbours)
    parts = [p for m in modules for p in vars(m).values() if hasattr(p, "py_func")]
    return sum(len(part.signatures) for part in parts)

said = texts.Texts(None, Path({str(tmp_path)!r}), "w")
predictor.Predictor.rehearse(said)
before, live = compiled(), predictor.Predictor.cold(said)
for n in range(60):
    event = Event(event_id=str(n), type="view", user_id="u", ts_ms=n, item_id=f"i{{n % 7}}", category=f"c{{n % 3}}")
    row = Row(event, Origin("t", 0, n, 0, n), "s")
    live.learn([row])
    assert live.predict([Session("s", "u", 0, n, [row])], [n])[0].items or n < 7
live.memory.make_room()
net = network.Network(said.dim, [], network.NetworkSettings())
trained = predictor.Trained(net, blend.Blend.flat(), categories=categories.Mixture())
live = predictor.Predictor(live.memory, said, trained=trained)
live.predict([Session("s", "u", 0, n, [row])], [n])  # everything is forgotten
live.memory.take(row)
live.predict([Session("s", "u", 0, n, [row])], [n])
assert before and compiled() == before, (before, compiled())
"""
    subprocess.run([sys.executable, "-c", code], check=True)
