-- Item aggregates before as_of: one row per item with an event.
-- Click-through rates are smoothed by 20 impressions at the overall rate and are missing where
-- nothing was shown. Tables: facts, pairs, item_keys. Parameters: as_of_ms.
SELECT
  k.item_id,
  s.impressions_1d, s.impressions_7d, s.impressions_28d, s.impressions_all,
  s.clicks_1d, s.clicks_7d, s.clicks_28d, s.clicks_all,
  s.purchases_1d, s.purchases_7d, s.purchases_28d, s.purchases_all,
  s.positives_1d, s.positives_7d, s.positives_28d, s.positives_all,
  s.revenue_1d, s.revenue_7d, s.revenue_28d, s.revenue_all,
  p.users_7d, p.users_28d, p.users_all,
  (CAST(s.clicks_7d AS DOUBLE) + 20.0E0 * c.ctr) / (CAST(s.impressions_7d AS DOUBLE) + 20.0E0) AS ctr_7d,
  (CAST(s.clicks_28d AS DOUBLE) + 20.0E0 * c.ctr) / (CAST(s.impressions_28d AS DOUBLE) + 20.0E0) AS ctr_28d,
  (CAST(s.clicks_all AS DOUBLE) + 20.0E0 * c.ctr) / (CAST(s.impressions_all AS DOUBLE) + 20.0E0) AS ctr_all,
  CAST(s.positives_7d AS DOUBLE) * 4.0E0 / NULLIF(CAST(s.positives_28d AS DOUBLE), 0.0E0)
    AS trend_7d_28d,
  CAST(s.positives_1d AS DOUBLE) * 7.0E0 / NULLIF(CAST(s.positives_7d AS DOUBLE), 0.0E0)
    AS trend_1d_7d,
  CAST(s.first_ms AS DOUBLE) / 86400000.0E0 AS first_day,
  CAST(s.last_ms AS DOUBLE) / 86400000.0E0 AS last_day,
  CAST(p.users_repeat AS DOUBLE) / NULLIF(CAST(p.users_all AS DOUBLE), 0.0E0) AS repeat_rate,
  CAST(s.positives_all AS DOUBLE) / NULLIF(CAST(p.users_all AS DOUBLE), 0.0E0)
    AS positives_per_user,
  s.revenue_all / NULLIF(CAST(s.purchases_all AS DOUBLE), 0.0E0) AS avg_value,
  s.avg_price_ratio,
  s.avg_basket_value,
  s.avg_basket_size,
  p.rank_28d, p.rank_all, p.category_rank_28d, p.category_share_28d, p.brand_category_share_28d
FROM (
  SELECT
    item_no,
    sum(CASE WHEN ts_ms >= {{as_of_ms}} - CAST(86400000 AS BIGINT) THEN impression ELSE 0 END) AS impressions_1d,
    sum(CASE WHEN ts_ms >= {{as_of_ms}} - CAST(604800000 AS BIGINT) THEN impression ELSE 0 END) AS impressions_7d,
    sum(CASE WHEN ts_ms >= {{as_of_ms}} - CAST(2419200000 AS BIGINT) THEN impression ELSE 0 END) AS impressions_28d,
    sum(impression) AS impressions_all,
    sum(CASE WHEN ts_ms >= {{as_of_ms}} - CAST(86400000 AS BIGINT) THEN click ELSE 0 END) AS clicks_1d,
    sum(CASE WHEN ts_ms >= {{as_of_ms}} - CAST(604800000 AS BIGINT) THEN click ELSE 0 END) AS clicks_7d,
    sum(CASE WHEN ts_ms >= {{as_of_ms}} - CAST(2419200000 AS BIGINT) THEN click ELSE 0 END) AS clicks_28d,
    sum(click) AS clicks_all,
    sum(CASE WHEN ts_ms >= {{as_of_ms}} - CAST(86400000 AS BIGINT) THEN purchase ELSE 0 END) AS purchases_1d,
    sum(CASE WHEN ts_ms >= {{as_of_ms}} - CAST(604800000 AS BIGINT) THEN purchase ELSE 0 END) AS purchases_7d,
    sum(CASE WHEN ts_ms >= {{as_of_ms}} - CAST(2419200000 AS BIGINT) THEN purchase ELSE 0 END) AS purchases_28d,
    sum(purchase) AS purchases_all,
    sum(CASE WHEN ts_ms >= {{as_of_ms}} - CAST(86400000 AS BIGINT) THEN positive ELSE 0 END) AS positives_1d,
    sum(CASE WHEN ts_ms >= {{as_of_ms}} - CAST(604800000 AS BIGINT) THEN positive ELSE 0 END) AS positives_7d,
    sum(CASE WHEN ts_ms >= {{as_of_ms}} - CAST(2419200000 AS BIGINT) THEN positive ELSE 0 END) AS positives_28d,
    sum(positive) AS positives_all,
    sum(CASE WHEN ts_ms >= {{as_of_ms}} - CAST(86400000 AS BIGINT) THEN revenue ELSE 0.0E0 END) AS revenue_1d,
    sum(CASE WHEN ts_ms >= {{as_of_ms}} - CAST(604800000 AS BIGINT) THEN revenue ELSE 0.0E0 END) AS revenue_7d,
    sum(CASE WHEN ts_ms >= {{as_of_ms}} - CAST(2419200000 AS BIGINT) THEN revenue ELSE 0.0E0 END) AS revenue_28d,
    sum(revenue) AS revenue_all,
    min(ts_ms) AS first_ms,
    max(ts_ms) AS last_ms,
    avg(price_ratio) AS avg_price_ratio,
    avg(CASE WHEN purchase = 1 THEN basket_value ELSE NULL END) AS avg_basket_value,
    avg(CAST(CASE WHEN purchase = 1 THEN basket_size ELSE NULL END AS DOUBLE)) AS avg_basket_size
  FROM facts
  WHERE ts_ms < {{as_of_ms}}
  GROUP BY item_no
) s
JOIN item_keys k ON k.item_no = s.item_no
JOIN (
  SELECT
    q.item_no, q.users_7d, q.users_28d, q.users_all, q.users_repeat,
    CAST(rank() OVER (ORDER BY q.positives_28d DESC NULLS LAST) AS BIGINT) AS rank_28d,
    CAST(rank() OVER (ORDER BY q.positives_all DESC NULLS LAST) AS BIGINT) AS rank_all,
    CAST(rank() OVER (PARTITION BY n.category_no ORDER BY q.positives_28d DESC NULLS LAST) AS BIGINT)
      AS category_rank_28d,
    CAST(q.positives_28d AS DOUBLE)
      / NULLIF(CAST(sum(q.positives_28d) OVER (PARTITION BY n.category_no) AS DOUBLE), 0.0E0)
      AS category_share_28d,
    CAST(q.positives_28d AS DOUBLE)
      / NULLIF(CAST(sum(q.positives_28d) OVER (PARTITION BY n.category_no, n.brand_no) AS DOUBLE),
               0.0E0) AS brand_category_share_28d
  FROM (
    SELECT
      item_no,
      sum(positives_28d) AS positives_28d,
      sum(positives_all) AS positives_all,
      CAST(sum(CASE WHEN positives_7d > 0 THEN 1 ELSE 0 END) AS BIGINT) AS users_7d,
      CAST(sum(CASE WHEN positives_28d > 0 THEN 1 ELSE 0 END) AS BIGINT) AS users_28d,
      CAST(sum(CASE WHEN positives_all > 0 THEN 1 ELSE 0 END) AS BIGINT) AS users_all,
      CAST(sum(CASE WHEN positives_all > 1 THEN 1 ELSE 0 END) AS BIGINT) AS users_repeat
    FROM pairs
    GROUP BY item_no
  ) q
  JOIN item_keys n ON n.item_no = q.item_no
) p ON p.item_no = s.item_no
CROSS JOIN (
  SELECT
    CAST(sum(CASE WHEN impression = 1 THEN click ELSE 0 END) AS DOUBLE)
      / NULLIF(CAST(sum(impression) AS DOUBLE), 0.0E0) AS ctr
  FROM facts
  WHERE ts_ms < {{as_of_ms}}
) c
