-- The events of the window: complete, once each, of known items, by user and time.
-- Repeated ids are rare, so only they are ranked; of copies the earliest stays. What is left out
-- here is what quarantine.sql selects.
-- Tables: raw_events (canonical columns, ts_ms), items, repeated. Parameters: from_ms, to_ms.
WITH complete AS (
  SELECT e.*
  FROM raw_events e
  LEFT SEMI JOIN items i ON e.item_id = i.item_id
  WHERE e.event_id IS NOT NULL AND e.user_id IS NOT NULL AND e.event IS NOT NULL
    AND e.ts_ms >= {{from_ms}} AND e.ts_ms < {{to_ms}}
),
once AS (
  SELECT c.* FROM complete c LEFT ANTI JOIN repeated r ON c.event_id = r.event_id
  UNION ALL
  SELECT c.*
  FROM complete c
  LEFT SEMI JOIN repeated r ON c.event_id = r.event_id
  QUALIFY row_number() OVER (PARTITION BY c.event_id
                             ORDER BY c.ts_ms ASC NULLS LAST, c.user_id ASC NULLS LAST,
                                      c.item_id ASC NULLS LAST, c.event ASC NULLS LAST,
                                      c.value ASC NULLS LAST, c.label ASC NULLS LAST,
                                      c.request_id ASC NULLS LAST, c.position ASC NULLS LAST) = 1
)
SELECT *
FROM once
ORDER BY user_id ASC NULLS LAST, ts_ms ASC NULLS LAST, event_id ASC NULLS LAST
