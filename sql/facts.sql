-- Every event reduced to numbers. Once a run; the aggregates of every day read it.
-- A click is a click event or an impression with a positive label; a positive is anything but an
-- unlabelled or negative impression. A basket is what one user did at one moment.
-- In parts, each of the users whose number leaves the same rest. Tables: events, item_keys, user_keys.
-- Parameters: parts, part (from 0).
SELECT
  u.user_no,
  i.item_no,
  i.category_no,
  i.brand_no,
  i.department_no,
  e.ts_ms,
  e.region,
  CAST(CASE WHEN e.event = 'impression' THEN 1 ELSE 0 END AS BIGINT) AS impression,
  CAST(CASE WHEN e.event = 'click' OR (e.event = 'impression' AND e.label >= 0.5E0)
            THEN 1 ELSE 0 END AS BIGINT) AS click,
  CAST(CASE WHEN e.event = 'purchase' THEN 1 ELSE 0 END AS BIGINT) AS purchase,
  CAST(CASE WHEN e.event <> 'impression' OR e.label >= 0.5E0 THEN 1 ELSE 0 END AS BIGINT)
    AS positive,
  CASE WHEN e.event = 'purchase' THEN COALESCE(e.value, 0.0E0) ELSE 0.0E0 END AS revenue,
  CASE WHEN e.event = 'purchase' THEN e.value / NULLIF(i.price, 0.0E0) ELSE NULL END AS price_ratio,
  sum(CASE WHEN e.event = 'purchase' THEN COALESCE(e.value, 0.0E0) ELSE 0.0E0 END)
    OVER (PARTITION BY u.user_no, e.ts_ms) AS basket_value,
  CAST(count(*) OVER (PARTITION BY u.user_no, e.ts_ms) AS BIGINT) AS basket_size,
  CAST(CASE WHEN row_number() OVER (PARTITION BY u.user_no, e.ts_ms
                                    ORDER BY e.event_id ASC NULLS LAST) = 1
            THEN 1 ELSE 0 END AS BIGINT) AS basket_first
-- The keys first: an engine that cannot tell which side of a join is small holds the left one in memory.
FROM user_keys u
JOIN (item_keys i JOIN events e ON e.item_id = i.item_id) ON e.user_id = u.user_id
WHERE u.user_no % CAST({{parts}} AS INT) = CAST({{part}} AS INT)
