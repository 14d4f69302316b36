"""Events as folded, the progress of each partition, and sessions as a view with merges applied."""

SQL = """
CREATE TABLE events (
    topic VARCHAR NOT NULL, "partition" INTEGER NOT NULL, "offset" BIGINT NOT NULL, n INTEGER NOT NULL,
    record_ms BIGINT, event_id VARCHAR, type VARCHAR, user_id VARCHAR, ts_ms BIGINT, own_session_id VARCHAR,
    item_id VARCHAR, title VARCHAR, category VARCHAR, brand VARCHAR, price DOUBLE, currency VARCHAR, quantity BIGINT,
    "position" BIGINT, query VARCHAR, prediction_id VARCHAR, consent BOOLEAN, properties VARCHAR,
    session_id VARCHAR, late BOOLEAN, seen INTEGER, absorbs VARCHAR[]
);
CREATE TABLE progress (
    topic VARCHAR, "partition" INTEGER, next BIGINT NOT NULL, watermark_ms BIGINT NOT NULL,
    stored BIGINT NOT NULL, duplicates BIGINT NOT NULL, rejected BIGINT NOT NULL,
    PRIMARY KEY (topic, "partition")
);
CREATE VIEW sessions AS
WITH RECURSIVE merges AS (
    SELECT DISTINCT topic, "partition", user_id, unnest(absorbs) AS session_id, session_id AS merged_into
    FROM events WHERE len(absorbs) > 0
), final AS (
    SELECT topic, "partition", user_id, session_id, merged_into AS final_id FROM merges
    UNION
    SELECT f.topic, f."partition", f.user_id, f.session_id, m.merged_into
    FROM final f JOIN merges m
      ON m.topic = f.topic AND m."partition" = f."partition" AND m.user_id = f.user_id AND m.session_id = f.final_id
), ends AS (
    SELECT f.* FROM final f ANTI JOIN merges m
      ON m.topic = f.topic AND m."partition" = f."partition" AND m.user_id = f.user_id AND m.session_id = f.final_id
)
SELECT e.topic, e."partition", e.user_id, coalesce(s.final_id, e.session_id) AS session_id,
    min(e.ts_ms) AS first_ms, max(e.ts_ms) AS last_ms, count(*) AS events,
    count(DISTINCT e.item_id) AS items, count(*) FILTER (e.type = 'purchase') AS purchases,
    count(DISTINCT e.session_id) AS parts
FROM events e LEFT JOIN ends s
  ON s.topic = e.topic AND s."partition" = e."partition" AND s.user_id = e.user_id AND s.session_id = e.session_id
GROUP BY ALL;
"""
