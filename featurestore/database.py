"""DuckDB as this package opens it."""

from __future__ import annotations

from pathlib import Path

import duckdb


def connect(path: Path | str = ":memory:", *, read_only: bool = False) -> duckdb.DuckDBPyConnection:
    """A connection that computes on one thread and draws no progress bar into a log."""
    con = duckdb.connect(str(path), read_only=read_only)
    con.execute("SET threads = 1")
    con.execute("SET enable_progress_bar = false")  # on where Python's main module is no file, as in a spawned process
    return con
