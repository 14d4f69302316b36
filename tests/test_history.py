"""Import: every event of a file once in the lake, however often it is stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from deploy import history
from featurestore import lake, sessions
from tests.test_cli import run

SETTINGS = sessions.SessionSettings()


def file_of(folder: Path, count: int = 400) -> Path:
    """Events of 40 users, a second apart."""
    view = {"type": "view", "item_id": "i1"}
    lines = [json.dumps(view | {"event_id": f"e{n}", "user_id": f"u{n % 40}", "ts": 1_000 * n}) for n in range(count)]
    path = folder / "past.jsonl"
    path.write_text("\n".join(lines))
    return path


def rows(shared: Path) -> list[Any]:
    """What the lake holds, in a form that compares."""
    return sorted(
        (r.event.event_id, r.session_id, r.seen, r.origin.partition, r.origin.offset)
        for r in lake.Lake(shared, "t").read(lambda cover: cover.rows())
    )


@pytest.mark.parametrize("writes", [0, 9, 30])
def test_stopped_anywhere_each_event_is_there_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    """A run that dies after any write goes on to the same rows, ids and sessions that one run makes."""
    file = file_of(tmp_path)
    whole = tmp_path / "whole"
    assert history.bring(file, whole, SETTINGS, batch=100).stored == 400
    write, done = lake.Lake.write_rows, [0]

    def dying(self: lake.Lake, *args: Any) -> Any:
        if done[0] == writes:
            raise OSError("the power went")
        done[0] += 1
        return write(self, *args)

    with monkeypatch.context() as patched:
        patched.setattr(lake.Lake, "write_rows", dying)
        with pytest.raises(OSError, match="power"):
            history.bring(file, tmp_path / "cut", SETTINGS, batch=100)
    again = history.bring(file, tmp_path / "cut", SETTINGS, batch=100)
    assert (again.messages, again.done) == (400, True)
    assert [r[0] for r in rows(tmp_path / "cut")] == [r[0] for r in rows(whole)]
    assert rows(tmp_path / "cut") == rows(whole)
    assert history.bring(file, tmp_path / "cut", SETTINGS) == again
    assert len(rows(tmp_path / "cut")) == 400


def test_what_cannot_be_used_is_said(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Bad lines and repeats are counted by reason, with examples; good ones are stored."""
    file = file_of(tmp_path, 10)
    file.write_text(file.read_text() + "\n{\n" + file.read_text().splitlines()[-1] + '\n{"type": "view"}\n')
    code, out, _ = run(capsys, "import", str(file), "--shared", str(tmp_path / "s"), "--json")
    (told,) = json.loads(out)
    assert (code, told["stored"], told["duplicates"], told["unusable"]) == (0, 10, 1, {"bad-json": 1, "schema": 1})
    assert told["examples"][0].startswith("message 11: bad-json")
    code, out, _ = run(capsys, "import", str(file), "--shared", str(tmp_path / "s"))
    assert (code, "10 rows stored of 13 messages" in out) == (0, True)
    code, _, err = run(capsys, "import", "/nowhere", "--shared", str(tmp_path / "s"))
    assert (code, "is no file" in err) == (1, True)
