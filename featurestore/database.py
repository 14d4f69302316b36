"""DuckDB as this package opens it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from featurestore import events

ALIKE = frozenset(
    {"topic", "type", "user_id", "item_id", "title", "category", "brand", "currency", "bot"}
)  # said often


def connect(path: Path | str = ":memory:", *, read_only: bool = False) -> duckdb.DuckDBPyConnection:
    """A connection that computes on one thread and draws no progress bar into a log."""
    con = duckdb.connect(str(path), read_only=read_only)
    con.execute("SET threads = 1")
    con.execute("SET checkpoint_threshold = '64MB'")  # at DuckDB's 16 MB checkpoints were half of a commit's time
    con.execute("SET enable_progress_bar = false")  # on where Python's main module is no file, as in a spawned process
    return con


def rows(table: pa.Table) -> list[events.Row]:
    """The rows of a table with the columns of `COLUMNS`; what many of them say is one object in memory."""
    return events.from_columns({name: _values(name, table[name].combine_chunks()) for name in table.column_names})


def _values(name: str, column: pa.Array) -> list[Any]:
    if column.null_count == len(column):
        return [() if name == "absorbs" else None] * len(column)
    if name == "absorbs":
        said = column.value_lengths().fill_null(0).to_numpy(zero_copy_only=False).nonzero()[0]
        absorbs: list[Any] = [()] * len(column)
        for place in said.tolist():
            absorbs[place] = tuple(column[place].as_py())
        return absorbs
    if name not in ALIKE:
        return list(column.to_pylist())
    alike = column.dictionary_encode()
    words = [*alike.dictionary.to_pylist(), None]
    return [words[i] for i in alike.indices.fill_null(len(words) - 1).to_numpy(zero_copy_only=False).tolist()]
