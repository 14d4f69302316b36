"""Ranking: known items as the scorer weighs them, new ones by their text, nobody's session by popularity."""

from __future__ import annotations

import http.client
import threading
from pathlib import Path
from typing import Any

import pytest

from deploy import health, history, ranking
from deploy.cli import rank as command
from deploy.settings import Settings
from featurestore import lake, sessions
from featurestore.events import Event, Session
from streams import ranking as asking
from tests.test_memory import row
from trainer import blend, network, rank, texts
from trainer.predictor import Predictor, Trained

ROWS = [
    row(n, item, user=user, category="Sports > Shoes" if "shoe" in item else "Home > Lamps")
    for n, (user, item) in enumerate(
        [(f"u{k}", item) for k in range(12) for item in ("red trail shoe", "blue trail shoe", "table lamp")]
    )
]


def model(tmp_path: Path, *, trained: bool) -> Predictor:
    """A memory of these rows, below a blend that listens to transitions, likeness and the network."""
    words = texts.Texts(None, tmp_path, "t")
    made = Predictor.cold(words)
    made.learn(ROWS)
    if trained:
        net = network.Network(words.dim, [], network.NetworkSettings())
        net.start_at(words.vectors([r.event.item_id or "" for r in ROWS]))
        weights = {"follows": 1.0, "neighbours": 0.5, "text": 2.0, "network": 0.3}
        mixed = blend.Blend(
            item=[weights.get(name, 0.0) for name in blend.FEATURES],
            other=[0.0] * len(blend.SESSION),
        )  # fmt: skip
        made.trained, made.version = Trained(net, mixed), "v1"
        made.items = texts.ItemTable(words, net.placed)
    return made


def candidates(*items: str, texts_: tuple[str, ...] = ()) -> list[rank.Candidate]:
    """Ids, then texts."""
    return [rank.Candidate(item_id=item) for item in items] + [rank.Candidate(text=text) for text in texts_]


def test_known_items_have_the_probability_of_the_prediction(tmp_path: Path) -> None:
    """What the scorer says of an item, the ranking says too: asking changes nothing."""
    made = model(tmp_path, trained=True)
    mine = [row(100, "red trail shoe", user="me")]
    (said,) = made.predict([Session("s", "me", 0, 0, mine)], [100_000])
    ranking_ = rank.rank(made, mine, 100_000, candidates("table lamp", "blue trail shoe"))
    assert {r.item_id: r.probability for r in ranking_.ranked} == pytest.approx(dict(said.items), abs=1e-6)
    assert ranking_.none_probability == pytest.approx(said.none_probability)
    assert [r.rank for r in ranking_.ranked] == [1, 2]


@pytest.mark.parametrize("trained", [True, False])
def test_new_items_are_ranked_by_their_text(tmp_path: Path, trained: bool) -> None:
    """Of two that nobody touched the one like the session comes first; the current item is not the next one."""
    made = model(tmp_path, trained=trained)
    mine = [row(100, "red trail shoe", user="me")]
    asked = candidates("red trail shoe", texts_=("espresso cups", "green trail shoe"))
    by_text = {r.text: r for r in rank.rank(made, mine, 100_000, asked).ranked}
    near, far = by_text["green trail shoe"], by_text["espresso cups"]
    assert near.rank < far.rank
    assert (near.known, near.place) == (False, 2)
    assert near.match is not None
    assert far.match is not None
    assert near.match > far.match
    assert (near.probability > far.probability) == trained
    assert next(r for r in by_text.values() if r.place == 0).probability == 0.0


def test_without_a_session_popularity_answers(tmp_path: Path) -> None:
    """Nobody's live session: shares of what is engaged with, no likeness, no word on nothing more."""
    made = rank.rank(model(tmp_path, trained=True), [], 36_000, candidates("table lamp", texts_=("new",)))
    assert (made.reason, made.none_probability, made.ranked[0].match) == ("popularity", None, None)
    assert made.ranked[0].probability == pytest.approx(1 / 3, abs=0.01)
    assert made.ranked[1].probability == 0.0


def test_the_lake_knows_the_open_session(tmp_path: Path) -> None:
    """What was flushed and is not over yet is found; a session that the watermark has left behind is not."""
    the_lake, settings = lake.Lake(tmp_path, "t"), sessions.SessionSettings()
    events = [
        Event(event_id=f"e{n}", type="view", user_id=user, ts_ms=at, item_id="table lamp")
        for n, (user, at) in enumerate([("gone", 1_000), ("here", 9_000_000), ("here", 9_001_000)])
    ]
    history.write(events, the_lake, settings)
    keys = the_lake.keys()
    assert keys
    found = ranking.open_sessions(the_lake, "here", settings)
    assert [len(s.rows) for s in found] == [2]
    assert ranking.open_sessions(the_lake, "nobody", settings) == []
    said = ranking.answered(model(tmp_path, trained=False), "here", found, ["blue trail shoe", "a new one"])
    assert (said["session_id"], said["reason"], len(said["ranked"])) == (found[0].session_id, "fallback", 2)
    assert "no live session" not in command.told(said)


def both(body: bytes) -> tuple[str, list[Session], list[str | rank.Candidate]]:
    """A request of nobody's session."""
    user, said = ranking.asked(body)
    return user, [], said


@pytest.mark.parametrize(
    ("body", "why"),
    [(b"{", "send {"), (b'{"user_id": "u"}', "candidates"), (b'{"user_id": "u", "candidates": []}', "send 1 to"),
     (b'{"user_id": "u", "candidates": [{"brand": ""}]}', "neither item_id nor a text")],
)  # fmt: skip
def test_what_cannot_be_ranked_is_told(tmp_path: Path, body: bytes, why: str) -> None:
    """The field and the remedy."""
    made = model(tmp_path, trained=False)
    with pytest.raises(ranking.Unrankable, match=why):
        ranking.answered(made, *both(body))


def test_over_http(tmp_path: Path) -> None:
    """POST /rank answers the client; without JSON, with a wrong body, or before there is a model it says why."""
    made = model(tmp_path, trained=False)

    def answer(body: bytes) -> Any:
        user, said = ranking.asked(body)
        return ranking.answered(made, user, [Session("s", user, 0, 0, [row(100, "table lamp", user=user)])], said)

    told = health.Health()
    server = health.Server(("127.0.0.1", 0), told, "")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        with pytest.raises(asking.NotRanked, match="503: this process ranks nothing"):
            asking.rank(url, "me", ["x"])
        told.rank = answer
        said = asking.rank(url, "me", ["red trail shoe", {"title": "desk lamp", "category": "Home > Lamps"}])
        assert (said.session_id, said.reason, said.ranked[0].item_id) == ("s", "fallback", "red trail shoe")
        with pytest.raises(asking.NotRanked, match="400: 0 candidates"):
            asking.rank(url, "me", [])
        plain = http.client.HTTPConnection(*server.server_address[:2])
        plain.request("POST", "/rank", b"{}", {"Content-Type": "text/plain"})
        assert plain.getresponse().status == 415
        plain.close()
    finally:
        server.shutdown()
        server.server_close()
    with pytest.raises(asking.NotRanked, match="no worker answers"):
        asking.rank(url, "me", ["x"])


def test_without_a_worker_the_shared_folder_answers(tmp_path: Path) -> None:
    """Before the first version the lake's rows are the memory; the person's open session is among them."""
    settings = Settings.load({"shared": str(tmp_path), "encoder": "none"})
    history.write([r.event for r in [*ROWS, row(100, "red trail shoe", user="me")]], lake.Lake(tmp_path, "t"),
                  settings.sessions())  # fmt: skip
    said = ranking.from_folder(settings, None, "me", ["blue trail shoe", "table lamp", "never seen"])
    assert (said["reason"], said["model_version"]) == ("fallback", "memory")
    assert [one["text"][:10] for one in said["ranked"]][-1] == "never seen"
