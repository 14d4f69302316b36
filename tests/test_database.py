"""DuckDB as the store and the lake open it."""

from __future__ import annotations

import subprocess
import sys

ASKED = """
from pathlib import Path
from featurestore import cover, store
with cover.connection() as con:
    print(con.execute("SELECT current_setting('enable_progress_bar'), current_setting('threads')").fetchall()[0])
held = store.Store(Path(PATH))
print(held._con.execute("SELECT current_setting('enable_progress_bar'), current_setting('threads')").fetchall()[0])
"""


def test_no_progress_bar_is_drawn_into_a_log(tmp_path: object) -> None:
    """DuckDB draws one where Python's main module is no file, as in the process of a retrain."""
    code = ASKED.replace("PATH", repr(f"{tmp_path}/w.duckdb"))
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.split("\n")[:2] == ["(False, 1)"] * 2
