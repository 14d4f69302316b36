"""`nextclick watch` and `send`: what is seen, and what leaves."""

from __future__ import annotations

import io
import json
import sys
import types
from pathlib import Path

import msgspec
import pytest

from deploy import broker, drawing
from streams import client, codec, topics
from tests.test_cli import run
from tests.test_client import prediction


def test_a_prediction_fits_into_80_columns() -> None:
    """However long names are; probabilities have bars, items their titles, versions are named."""
    made = msgspec.structs.replace(
        prediction(1), user_id="u" * 200, items=codec.ranked_items([("i1", 0.5), ("i" * 300, 0.05)]),
        categories=codec.ranked_categories([("Sports > Shoes", 0.64)]), none_probability=0.2, purchase_probability=0.06,
    )  # fmt: skip
    text = drawing.prediction(made, {"i1": "Kestrel shoes"}.get)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].endswith("nothing more 20% · buys 6% · v1")
    assert lines[1] == "  █████       50%  Kestrel shoes"
    assert lines[3] == "  ██████▍     64%  in Sports > Shoes"


def test_lines_of_a_pipe_are_checked_and_sent(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Good lines arrive, bad ones are told with their number, field and reason, and the code is 1; then `watch`."""
    good = {"event_id": "e1", "type": "view", "user_id": "u1", "ts": 1, "item_id": "i1"}
    lines = [json.dumps(good), "{", json.dumps(good | {"type": "look"}), "[]", json.dumps(good | {"event_id": "e2"})]
    stdin = types.SimpleNamespace(buffer=io.BufferedReader(io.BytesIO("\n".join(lines).encode())))
    with broker.embedded(port=0) as embedded:
        topics.ensure(embedded.address, topics.Topics())
        with monkeypatch.context() as patched:
            patched.setattr(sys, "stdin", stdin)
            code, out, err = run(capsys, "send", "--kafka", embedded.address, "--json")
        told = json.loads(out)
        assert (code, told["delivered"], told["refused"], told["idempotent"]) == (1, 2, 3, True)
        assert [line["line"] for line in told["refused_lines"]] == [2, 3, 4]
        assert "line 3 is not sent: schema: type:" in err
        file = tmp_path / "good.jsonl"
        file.write_text(lines[0])
        assert run(capsys, "send", str(file), "--kafka", embedded.address)[0] == 0

        with client.EventProducer(embedded.address, topics.Topics().predictions) as raw:
            for offset, user in ((1, "u1"), (2, "u2")):
                made = msgspec.structs.replace(prediction(offset), user_id=user)
                raw._producer.send(raw.topic, key=user.encode(), value=codec.encode_prediction(made))
            raw._producer.flush()
        watched = ["watch", "--kafka", embedded.address, "--from-start", "--limit", "1", "--shared", str(tmp_path)]
        code, out, _ = run(capsys, *watched, "--user", "u2", "--json")
        assert (code, json.loads(out)["trigger"]["offset"]) == (0, 2)
        code, out, _ = run(capsys, *watched)
        assert (code, "nothing is known to be near" in out, "\x1b" in out) == (0, True, False)
