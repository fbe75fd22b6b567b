-- The events that events.sql leaves out, each with every check that it fails; of copies all but
-- the earliest.
-- Tables: raw_events (canonical columns, ts_ms), items, repeated. Parameters: from_ms, to_ms.
WITH judged AS (
  SELECT
    e.*,
    concat_ws(',',
      CASE WHEN e.event_id IS NULL OR e.user_id IS NULL OR e.item_id IS NULL
             OR e.event IS NULL OR e.ts_ms IS NULL THEN 'null_id' ELSE NULL END,
      CASE WHEN e.ts_ms < {{from_ms}} OR e.ts_ms >= {{to_ms}} THEN 'outside_window' ELSE NULL END,
      CASE WHEN e.item_id IS NOT NULL AND i.item_id IS NULL THEN 'unknown_item' ELSE NULL END)
      AS reason
  FROM raw_events e
  LEFT JOIN items i ON e.item_id = i.item_id
)
SELECT j.* FROM judged j WHERE j.reason <> ''
UNION ALL
SELECT c.*, 'duplicate_id' AS reason
FROM raw_events c
LEFT SEMI JOIN items i ON c.item_id = i.item_id
LEFT SEMI JOIN repeated r ON c.event_id = r.event_id
WHERE c.user_id IS NOT NULL AND c.event IS NOT NULL
  AND c.ts_ms >= {{from_ms}} AND c.ts_ms < {{to_ms}}
QUALIFY row_number() OVER (PARTITION BY c.event_id
                           ORDER BY c.ts_ms ASC NULLS LAST, c.user_id ASC NULLS LAST,
                                    c.item_id ASC NULLS LAST, c.event ASC NULLS LAST,
                                    c.value ASC NULLS LAST, c.label ASC NULLS LAST,
                                    c.request_id ASC NULLS LAST, c.position ASC NULLS LAST) > 1
