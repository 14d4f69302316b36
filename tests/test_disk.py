"""A file is replaced whole or not at all, whatever fails on the way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from featurestore import disk


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its bytes are synced, then the name is given, then the folder is synced; missing folders are made."""
    steps: list[str] = []
    sync, replace = disk.sync, Path.replace
    monkeypatch.setattr(disk, "sync", lambda path: (steps.append(f"sync {path.suffix or path.name}"), sync(path)))
    monkeypatch.setattr(Path, "replace", lambda a, b: (steps.append(f"name {b.name}"), replace(a, b))[1])
    disk.replace(tmp_path / "in" / "note.json", [b"new ", b"bytes"], "w")
    assert steps == ["sync .tmp", "name note.json", "sync in"]
    assert [(p.name, p.read_bytes()) for p in (tmp_path / "in").iterdir()] == [("note.json", b"new bytes")]


@pytest.mark.parametrize("failing", ["write", "sync", "replace"])
def test_where_it_fails_the_old_file_is_whole_and_nothing_lies_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    """A full disk at the first byte, at the sync or at the name."""
    file = tmp_path / "note.json"
    disk.replace(file, [b"old"])

    def full(*_: object) -> bytes:
        raise OSError("No space left on device")

    if failing != "write":
        monkeypatch.setattr(disk if failing == "sync" else Path, failing, full)
    with pytest.raises(OSError, match="No space left"):
        disk.replace(file, (full() if failing == "write" else b"%d" % n for n in range(3)))
    monkeypatch.undo()
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("note.json", b"old")]


KILLED = """
import os, signal, sys
from pathlib import Path
from featurestore import disk
with disk.replacing(Path(sys.argv[1]), "w") as temporary:
    temporary.write_bytes(b"half of it")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_where_its_writer_is_killed_the_old_file_is_whole(tmp_path: Path) -> None:
    """What the dead left tells whose it was; the next writer is not in its way."""
    file = tmp_path / "note.json"
    disk.replace(file, [b"old"])
    done = subprocess.run(
        [sys.executable, "-c", KILLED, file], env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    )
    assert done.returncode == -signal.SIGKILL
    assert file.read_bytes() == b"old"
    (left,) = tmp_path.glob(".note.json.w.*.tmp")
    disk.replace(file, [b"new"])
    assert (file.read_bytes(), left.read_bytes()) == (b"new", b"half of it")
