-- Ids of more than one complete event of the window, with the number of their copies.
-- Tables: raw_events (canonical columns, ts_ms), items. Parameters: from_ms, to_ms.
SELECT
  e.event_id,
  CAST(count(*) AS BIGINT) AS copies
FROM raw_events e
LEFT SEMI JOIN items i ON e.item_id = i.item_id
WHERE e.event_id IS NOT NULL AND e.user_id IS NOT NULL AND e.event IS NOT NULL
  AND e.ts_ms >= {{from_ms}} AND e.ts_ms < {{to_ms}}
GROUP BY e.event_id
HAVING count(*) > 1
