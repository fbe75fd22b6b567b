-- What came on each day of the window, by kind of event: what drift is measured on.
-- Tables: raw_events (canonical columns, ts_ms). Parameters: from_ms, to_ms.
SELECT
  e.ts_ms - e.ts_ms % CAST(86400000 AS BIGINT) AS day_ms,
  COALESCE(e.event, '') AS event,
  CAST(count(*) AS BIGINT) AS events,
  CAST(count(e.value) AS BIGINT) AS values_given,
  CAST(sum(e.value) AS DOUBLE) AS value_sum,
  CAST(sum(CASE WHEN e.label >= 0.5E0 THEN 1 ELSE 0 END) AS BIGINT) AS labelled,
  CAST(sum(CASE WHEN e.value IS NULL THEN 1 ELSE 0 END) AS BIGINT) AS null_value,
  CAST(sum(CASE WHEN e.label IS NULL THEN 1 ELSE 0 END) AS BIGINT) AS null_label,
  CAST(sum(CASE WHEN e.request_id IS NULL THEN 1 ELSE 0 END) AS BIGINT) AS null_request_id,
  CAST(sum(CASE WHEN e.region IS NULL THEN 1 ELSE 0 END) AS BIGINT) AS null_region,
  CAST(sum(CASE WHEN e.device IS NULL THEN 1 ELSE 0 END) AS BIGINT) AS null_device
FROM raw_events e
WHERE e.ts_ms >= {{from_ms}} AND e.ts_ms < {{to_ms}}
GROUP BY e.ts_ms - e.ts_ms % CAST(86400000 AS BIGINT), COALESCE(e.event, '')
