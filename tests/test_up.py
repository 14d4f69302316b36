"""Everything on one machine: what it tells those who want to look at it from elsewhere."""

from __future__ import annotations

import shlex
from pathlib import Path

from deploy import up
from deploy.settings import Settings


def test_another_shell_is_told_how_to_find_this_run(tmp_path: Path) -> None:
    """The line names broker and shared folder from wherever it is typed, whatever characters are in them."""
    folder = tmp_path / "a shop's"
    said = shlex.split(up.exports(Settings.load({"kafka": "127.0.0.1:9", "shared": str(folder)})))
    assert said == ["export", "NEXTCLICK_KAFKA=127.0.0.1:9", f"NEXTCLICK_SHARED={folder}"]
