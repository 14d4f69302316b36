-- The store's statements, each under its name. $columns stands for the row's columns in order, $absorbed for the
-- fragment of that name.

-- name: schema
-- The schema steps that this file has behind it.
CREATE TABLE IF NOT EXISTS schema_steps (step VARCHAR PRIMARY KEY)

-- name: steps
SELECT step FROM schema_steps

-- name: step_done
INSERT INTO schema_steps VALUES (?)

-- name: insert_rows
INSERT INTO events ($columns) SELECT $columns FROM batch_rows

-- name: upsert_progress
-- All partitions of a batch in one statement: eight separate ones cost four times as much.
INSERT INTO progress SELECT * FROM batch_progress
ON CONFLICT DO UPDATE SET next = excluded.next, watermark_ms = excluded.watermark_ms, stored = excluded.stored,
    duplicates = excluded.duplicates, rejected = excluded.rejected

-- name: progress
SELECT topic, "partition", next, watermark_ms, stored, duplicates, rejected FROM progress

-- name: absorbed
-- To follow `wanted AS (SELECT user_id, session_id …` in a WITH RECURSIVE: with those sessions all that they absorbed,
-- and what absorbed them.
UNION
SELECT m.user_id, m.other FROM wanted w
JOIN (
    SELECT user_id, session_id, unnest(absorbs) AS other FROM events
    WHERE topic = $topic AND "partition" = $partition AND len(absorbs) > 0
    UNION ALL
    SELECT user_id, unnest(absorbs), session_id FROM events
    WHERE topic = $topic AND "partition" = $partition AND len(absorbs) > 0
) m ON m.user_id = w.user_id AND m.session_id = w.session_id

-- name: rows
-- Whole sessions that have a row at or after an instant or are named in open_sessions, what they absorbed included.
WITH RECURSIVE wanted AS (
    SELECT user_id, session_id FROM events WHERE topic = $topic AND "partition" = $partition AND ts_ms >= $since_ms
    UNION SELECT user_id, session_id FROM open_sessions
    $absorbed
)
SELECT $columns FROM events
WHERE topic = $topic AND "partition" = $partition AND (user_id, session_id) IN (SELECT user_id, session_id FROM wanted)
ORDER BY "offset", n

-- name: evictable
SELECT count(*) FROM events
WHERE topic = $topic AND "partition" = $partition AND ts_ms < $before_ms AND "offset" < $flushed

-- name: evict
-- What is old and flushed, but no row of an open session or of one that it absorbed.
DELETE FROM events
WHERE topic = $topic AND "partition" = $partition AND ts_ms < $before_ms AND "offset" < $flushed
AND (user_id, session_id) NOT IN (
    WITH RECURSIVE wanted AS (
        SELECT user_id, session_id FROM open_sessions
        $absorbed
    )
    SELECT user_id, session_id FROM wanted
)

-- name: held
SELECT count(*) FROM events WHERE topic = ? AND "partition" = ? AND "offset" >= ? AND "offset" < ?

-- name: flush_rows
SELECT $columns FROM events JOIN ranges USING (topic, "partition")
WHERE "offset" >= first AND "offset" < next
ORDER BY topic, "partition", "offset", n

-- name: all_rows
SELECT $columns FROM events

-- name: drop_rows
DELETE FROM events WHERE topic = ? AND "partition" = ?

-- name: drop_progress
DELETE FROM progress WHERE topic = ? AND "partition" = ?

-- name: forget
DELETE FROM events WHERE user_id IN (SELECT user_id FROM forgotten_users)

-- name: erased
SELECT users FROM erased

-- name: note_erased
INSERT INTO erased VALUES (?)
