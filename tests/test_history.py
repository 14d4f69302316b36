"""Import: every event of a file once in the lake, however often it is stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from deploy import history, order
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


def test_a_file_in_no_order_is_refused_or_sorted(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Newest first: without --sort nothing is written; with it the rows are those of the same file in order."""
    file = file_of(tmp_path)
    assert history.bring(file, tmp_path / "whole", SETTINGS).late == 0
    backwards = tmp_path / "backwards.jsonl"
    backwards.write_text("\n".join([*reversed(file.read_text().splitlines()), "{"]))
    shared = tmp_path / "s"
    code, _, err = run(capsys, "import", str(backwards), "--shared", str(shared))
    assert (code, len(err.strip().splitlines()), "add --sort" in err) == (1, 1, True)
    assert not (shared / "events").exists()
    code, out, err = run(capsys, "import", str(backwards), "--shared", str(shared), "--sort", "--json")
    (told,) = json.loads(out)
    assert (code, told["stored"], told["late"], told["unusable"]) == (0, 400, 0, {"bad-json": 1}), err
    assert rows(shared) == rows(tmp_path / "whole")
    assert [path.suffix for path in (shared / "imports").iterdir()] == [".json"]
    assert history.bring(backwards, shared, SETTINGS).done
    assert len(rows(shared)) == 400


def test_sorted_and_stopped_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sorted import that died goes on with --sort, and only so."""
    file = file_of(tmp_path)
    file.write_text("\n".join(reversed(file.read_text().splitlines())))
    history.bring(file, tmp_path / "whole", SETTINGS, batch=100, sort=True)
    write, done = lake.Lake.write_rows, [0]

    def dying(self: lake.Lake, *args: Any) -> Any:
        done[0] += 1
        if done[0] == 9:
            raise OSError("the power went")
        return write(self, *args)

    with monkeypatch.context() as patched:
        patched.setattr(lake.Lake, "write_rows", dying)
        with pytest.raises(OSError, match="power"):
            history.bring(file, tmp_path / "cut", SETTINGS, batch=100, sort=True)
    with pytest.raises(order.NotInOrder, match="begun with --sort"):
        history.bring(file, tmp_path / "cut", SETTINGS, batch=100)
    history.bring(file, tmp_path / "cut", SETTINGS, batch=100, sort=True)
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")
