-- One row of counts over the raw events of the window, before anything is left out.
-- Tables: raw_events (canonical columns, ts_ms), items. Parameters: from_ms, to_ms.
SELECT
  CAST(count(*) AS BIGINT) AS events,
  CAST(sum(CASE WHEN e.event_id IS NULL OR e.user_id IS NULL OR e.item_id IS NULL
                  OR e.event IS NULL OR e.ts_ms IS NULL THEN 1 ELSE 0 END) AS BIGINT) AS null_id,
  CAST(count(e.event_id) - count(DISTINCT e.event_id) AS BIGINT) AS duplicate_id,
  CAST(sum(CASE WHEN e.ts_ms < {{from_ms}} OR e.ts_ms >= {{to_ms}} THEN 1 ELSE 0 END) AS BIGINT)
    AS outside_window,
  CAST(sum(CASE WHEN e.item_id IS NOT NULL AND i.item_id IS NULL THEN 1 ELSE 0 END) AS BIGINT)
    AS unknown_item,
  CAST(sum(CASE WHEN e.value IS NULL THEN 1 ELSE 0 END) AS BIGINT) AS null_value,
  CAST(sum(CASE WHEN e.label IS NULL THEN 1 ELSE 0 END) AS BIGINT) AS null_label,
  CAST(sum(CASE WHEN e.request_id IS NULL THEN 1 ELSE 0 END) AS BIGINT) AS null_request_id,
  CAST(sum(CASE WHEN e.region IS NULL THEN 1 ELSE 0 END) AS BIGINT) AS null_region,
  CAST(sum(CASE WHEN e.device IS NULL THEN 1 ELSE 0 END) AS BIGINT) AS null_device,
  min(e.ts_ms) AS first_ms,
  max(e.ts_ms) AS last_ms
FROM raw_events e
LEFT JOIN items i ON e.item_id = i.item_id
