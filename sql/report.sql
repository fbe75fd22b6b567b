-- What answers led to: one row per dimension and value, with the sums over users that intervals need.
-- A click, and an order, counts once for an item of an answer. Events are joined to the request that
-- showed the item; what it says of device, region, variant and bundle goes before what the event says.
-- Tables: raw_events (canonical columns, ts_ms), requests. Parameters: shown, clicks, orders (lists of kinds).
WITH answers AS (
  SELECT request_id, min(user_id) AS user_id, min(device) AS device, min(region) AS region,
    min(variant) AS variant, min(bundle_version) AS bundle_version, min(day) AS day
  FROM requests
  GROUP BY request_id
),
once AS (
  SELECT
    coalesce(request_id, event_id) AS request, user_id, item_id,
    min(device) AS device, min(region) AS region, min(variant) AS variant,
    min(bundle_version) AS bundle_version, min(ts_ms) AS ts_ms,
    max(CASE WHEN event = {{shown}} THEN 1.0E0 ELSE 0.0E0 END) AS impressions,
    max(CASE WHEN event IN ({{clicks}}) THEN 1.0E0 ELSE 0.0E0 END) AS clicks,
    max(CASE WHEN event IN ({{orders}}) THEN 1.0E0 ELSE 0.0E0 END) AS orders,
    sum(CASE WHEN event IN ({{orders}}) THEN coalesce(value, 0.0E0) ELSE 0.0E0 END) AS revenue
  FROM raw_events
  WHERE event = {{shown}} OR event IN ({{clicks}}) OR event IN ({{orders}})
  GROUP BY coalesce(request_id, event_id), user_id, item_id
),
things AS (
  SELECT
    e.user_id,
    coalesce(a.device, e.device) AS device, coalesce(a.region, e.region) AS region,
    coalesce(a.variant, e.variant) AS variant,
    coalesce(a.bundle_version, e.bundle_version) AS bundle_version,
    coalesce(a.day, e.ts_ms - e.ts_ms % 86400000) AS day,
    0.0E0 AS answers, e.impressions, e.clicks, e.orders, e.revenue,
    CASE WHEN a.request_id IS NULL THEN 1.0E0 ELSE 0.0E0 END AS unjoined
  FROM once e
  LEFT JOIN answers a ON e.request = a.request_id
  UNION ALL
  SELECT user_id, device, region, variant, bundle_version, day,
    1.0E0 AS answers, 0.0E0 AS impressions, 0.0E0 AS clicks, 0.0E0 AS orders, 0.0E0 AS revenue,
    0.0E0 AS unjoined
  FROM answers
),
dimensions AS (
  SELECT 'all' AS dimension UNION ALL SELECT 'day' AS dimension UNION ALL
  SELECT 'bundle' AS dimension UNION ALL SELECT 'variant' AS dimension UNION ALL
  SELECT 'device' AS dimension UNION ALL SELECT 'region' AS dimension
),
per_user AS (
  SELECT
    d.dimension,
    coalesce(CASE
      WHEN d.dimension = 'all' THEN ''
      WHEN d.dimension = 'day' THEN CAST(t.day AS STRING)
      WHEN d.dimension = 'bundle' THEN t.bundle_version
      WHEN d.dimension = 'variant' THEN t.variant
      WHEN d.dimension = 'device' THEN t.device
      ELSE t.region
    END, 'not known') AS value,
    t.user_id,
    sum(t.answers) AS answers, sum(t.impressions) AS impressions, sum(t.clicks) AS clicks,
    sum(t.orders) AS orders, sum(t.revenue) AS revenue, sum(t.unjoined) AS unjoined
  FROM things t
  CROSS JOIN dimensions d
  GROUP BY 1, 2, 3
)
SELECT
  dimension, value, count(*) AS users,
  sum(answers) AS answers, sum(impressions) AS impressions, sum(clicks) AS clicks,
  sum(orders) AS orders, sum(revenue) AS revenue, sum(unjoined) AS unjoined,
  sum(answers * answers) AS answers_answers,
  sum(impressions * impressions) AS impressions_impressions,
  sum(clicks * clicks) AS clicks_clicks,
  sum(clicks * impressions) AS clicks_impressions,
  sum(orders * orders) AS orders_orders,
  sum(orders * clicks) AS orders_clicks,
  sum(revenue * revenue) AS revenue_revenue,
  sum(revenue * impressions) AS revenue_impressions,
  sum(revenue * answers) AS revenue_answers
FROM per_user
GROUP BY dimension, value
ORDER BY dimension ASC NULLS LAST, value ASC NULLS LAST
