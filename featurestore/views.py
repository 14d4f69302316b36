"""The lake as plain SQL sees it: the views events, sessions, bots and labels over one cover; nothing can be written."""

from __future__ import annotations

from typing import Any

import duckdb

from featurestore import database
from featurestore.cover import Cover

SESSIONS = """
CREATE VIEW sessions AS
SELECT user_id, session_id, min(ts_ms) AS first_ms, max(ts_ms) AS last_ms, count(*) AS events,
    count(DISTINCT item_id) AS items, count(*) FILTER (type = 'purchase') AS purchases, max(bot) AS bot
FROM events GROUP BY user_id, session_id
"""
BOTS = """
CREATE VIEW bots AS
SELECT user_id, session_id, arg_min(bot, (ts_ms, "offset", n)) FILTER (bot IS NOT NULL) AS reason,
    min(ts_ms) FILTER (bot IS NOT NULL) AS since_ms, count(*) FILTER (bot IS NOT NULL) AS rows_left_out,
    count(*) AS events
FROM events GROUP BY user_id, session_id HAVING count(bot) > 0
"""
LABELS = """
CREATE VIEW labels AS
WITH engaged AS (
    SELECT * FROM events WHERE type IN ('click', 'view', 'cart', 'purchase') AND item_id IS NOT NULL AND bot IS NULL
), current AS (
    SELECT c.*, last(CASE WHEN type IN ('click', 'view', 'cart', 'purchase') THEN item_id END IGNORE NULLS) OVER (
        PARTITION BY user_id, session_id ORDER BY "partition", "offset", n
    ) AS at_item FROM events c WHERE consent AND NOT late AND bot IS NULL
)
SELECT c.user_id, c.session_id, c.topic, c."partition", c."offset", c.n, c.ts_ms, c.type, c.item_id,
    (SELECT arg_min(e.item_id, (e."offset", e.n)) FROM engaged e
     WHERE e.user_id = c.user_id AND e.topic = c.topic AND e."partition" = c."partition"
       AND (e."offset", e.n) > (c."offset", c.n) AND e.ts_ms > c.ts_ms AND e.ts_ms < c.ts_ms + {horizon_ms}
       AND e.item_id IS DISTINCT FROM c.at_item) AS next_item
FROM current c
"""


class BadStatement(ValueError):
    """What was asked is no SELECT over events, sessions, bots and labels; the message is DuckDB's."""


def ask(cover: Cover, statement: str, *, limit: int, horizon_ms: int) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Names of the columns and at most `limit` rows; raises BadStatement. Immature labels are in `labels`, as null."""
    with database.connect() as con:
        con.execute(f"CREATE VIEW events AS {cover.relation()}")
        con.execute(SESSIONS)
        con.execute(BOTS)
        con.execute(LABELS.format(horizon_ms=int(horizon_ms)))
        paths = ", ".join("'" + str(s.path).replace("'", "''") + "'" for s in cover.segments)
        # without this a statement could read and write any of the machine's files
        con.execute(f"SET allowed_paths = [{paths}]")
        con.execute("SET enable_external_access = false")
        con.execute("SET lock_configuration = true")
        try:
            asked = con.extract_statements(statement)
            if len(asked) != 1 or asked[0].type not in (duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN):
                raise BadStatement("write one SELECT over events, sessions, bots and labels")
            found = con.execute(statement)
            names = [column[0] for column in found.description or ()]
            rows = found.fetchmany(limit)
        except duckdb.IOException:
            raise  # a file was replaced: the reader takes a new cover
        except duckdb.Error as error:
            raise BadStatement(str(error).splitlines()[0]) from error
    return names, rows
