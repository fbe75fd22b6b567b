-- One row of counts and ranges over the raw events of the window, before anything is left out.
-- Tables: raw_events (canonical columns, ts_ms), items, users, repeated.
-- Parameters: from_ms, to_ms.
SELECT
  CAST(count(*) AS BIGINT) AS events,
  CAST(sum(CASE WHEN e.event_id IS NULL OR e.user_id IS NULL OR e.item_id IS NULL
                  OR e.event IS NULL OR e.ts_ms IS NULL THEN 1 ELSE 0 END) AS BIGINT) AS null_id,
  CAST(sum(CASE WHEN e.ts_ms < {{from_ms}} OR e.ts_ms >= {{to_ms}} THEN 1 ELSE 0 END) AS BIGINT)
    AS outside_window,
  CAST(sum(CASE WHEN e.item_id IS NOT NULL AND i.item_id IS NULL THEN 1 ELSE 0 END) AS BIGINT)
    AS unknown_item,
  CAST(sum(CASE WHEN e.user_id IS NOT NULL AND u.user_id IS NULL THEN 1 ELSE 0 END) AS BIGINT)
    AS unknown_user,
  CAST(max(d.duplicates) AS BIGINT) AS duplicate_id,
  CAST(sum(CASE WHEN e.value < 0.0E0 THEN 1 ELSE 0 END) AS BIGINT) AS negative_value,
  CAST(sum(CASE WHEN e.value IS NULL THEN 1 ELSE 0 END) AS BIGINT) AS null_value,
  CAST(sum(CASE WHEN e.label IS NULL THEN 1 ELSE 0 END) AS BIGINT) AS null_label,
  CAST(sum(CASE WHEN e.request_id IS NULL THEN 1 ELSE 0 END) AS BIGINT) AS null_request_id,
  CAST(sum(CASE WHEN e.position IS NULL THEN 1 ELSE 0 END) AS BIGINT) AS null_position,
  CAST(sum(CASE WHEN e.region IS NULL THEN 1 ELSE 0 END) AS BIGINT) AS null_region,
  CAST(sum(CASE WHEN e.device IS NULL THEN 1 ELSE 0 END) AS BIGINT) AS null_device,
  CAST(min(e.ts_ms) AS DOUBLE) AS min_ts_ms,
  CAST(max(e.ts_ms) AS DOUBLE) AS max_ts_ms,
  min(e.value) AS min_value,
  max(e.value) AS max_value,
  min(e.label) AS min_label,
  max(e.label) AS max_label,
  CAST(min(e.position) AS DOUBLE) AS min_position,
  CAST(max(e.position) AS DOUBLE) AS max_position
FROM raw_events e
LEFT JOIN items i ON e.item_id = i.item_id
LEFT JOIN users u ON e.user_id = u.user_id
CROSS JOIN (
  SELECT COALESCE(sum(copies - CAST(1 AS BIGINT)), CAST(0 AS BIGINT)) AS duplicates FROM repeated
) d
