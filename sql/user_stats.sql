-- User aggregates before as_of: one row per user with an event.
-- Click-through rates are smoothed by 20 impressions at the overall rate and are missing where
-- nothing was shown. Tables: facts, pairs, user_keys, user_category, user_brand, user_department.
-- Parameters: as_of_ms.
SELECT
  k.user_id,
  s.impressions_1d, s.impressions_7d, s.impressions_28d, s.impressions_all,
  s.clicks_1d, s.clicks_7d, s.clicks_28d, s.clicks_all,
  s.purchases_1d, s.purchases_7d, s.purchases_28d, s.purchases_all,
  s.positives_1d, s.positives_7d, s.positives_28d, s.positives_all,
  s.revenue_1d, s.revenue_7d, s.revenue_28d, s.revenue_all,
  (CAST(s.clicks_7d AS DOUBLE) + 20.0E0 * c.ctr) / (CAST(s.impressions_7d AS DOUBLE) + 20.0E0) AS ctr_7d,
  (CAST(s.clicks_28d AS DOUBLE) + 20.0E0 * c.ctr) / (CAST(s.impressions_28d AS DOUBLE) + 20.0E0) AS ctr_28d,
  (CAST(s.clicks_all AS DOUBLE) + 20.0E0 * c.ctr) / (CAST(s.impressions_all AS DOUBLE) + 20.0E0) AS ctr_all,
  s.baskets_7d, s.baskets_28d, s.baskets_all,
  s.basket_value_all / NULLIF(CAST(s.baskets_all AS DOUBLE), 0.0E0) AS avg_basket_value,
  CAST(s.basket_size_all AS DOUBLE) / NULLIF(CAST(s.baskets_all AS DOUBLE), 0.0E0)
    AS avg_basket_size,
  s.revenue_all / NULLIF(CAST(s.purchases_all AS DOUBLE), 0.0E0) AS avg_value,
  s.avg_price_ratio,
  CAST(s.last_ms - s.first_ms AS DOUBLE) / 86400000.0E0
    / NULLIF(CAST(s.baskets_all - CAST(1 AS BIGINT) AS DOUBLE), 0.0E0) AS days_between_baskets,
  CAST(s.positives_7d AS DOUBLE) * 4.0E0 / NULLIF(CAST(s.positives_28d AS DOUBLE), 0.0E0)
    AS trend_7d_28d,
  CAST(s.first_ms AS DOUBLE) / 86400000.0E0 AS first_day,
  CAST(s.last_ms AS DOUBLE) / 86400000.0E0 AS last_day,
  CAST(s.positives_morning AS DOUBLE) / NULLIF(CAST(s.positives_all AS DOUBLE), 0.0E0) AS share_morning,
  CAST(s.positives_afternoon AS DOUBLE) / NULLIF(CAST(s.positives_all AS DOUBLE), 0.0E0) AS share_afternoon,
  CAST(s.positives_evening AS DOUBLE) / NULLIF(CAST(s.positives_all AS DOUBLE), 0.0E0) AS share_evening,
  CAST(s.positives_weekend AS DOUBLE) / NULLIF(CAST(s.positives_all AS DOUBLE), 0.0E0) AS share_weekend,
  p.items_28d, p.items_all,
  CAST(s.positives_all - p.items_all AS DOUBLE) / NULLIF(CAST(s.positives_all AS DOUBLE), 0.0E0)
    AS repeat_share,
  g.categories_all, g.categories_28d, g.top_category, g.top_category_share,
  b.brands_all, b.top_brand, b.top_brand_share,
  d.departments_all, d.top_department, d.top_department_share
FROM (
  SELECT
    user_no,
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
    sum(CASE WHEN ts_ms >= {{as_of_ms}} - CAST(604800000 AS BIGINT) THEN basket_first ELSE 0 END) AS baskets_7d,
    sum(CASE WHEN ts_ms >= {{as_of_ms}} - CAST(2419200000 AS BIGINT) THEN basket_first ELSE 0 END) AS baskets_28d,
    sum(basket_first) AS baskets_all,
    sum(CASE WHEN basket_first = 1 THEN basket_value ELSE 0.0E0 END) AS basket_value_all,
    sum(CASE WHEN basket_first = 1 THEN basket_size ELSE 0 END) AS basket_size_all,
    min(ts_ms) AS first_ms,
    max(ts_ms) AS last_ms,
    avg(price_ratio) AS avg_price_ratio,
    sum(CASE WHEN ts_ms % CAST(86400000 AS BIGINT) BETWEEN 18000000 AND 43199999 THEN positive ELSE 0 END) AS positives_morning,
    sum(CASE WHEN ts_ms % CAST(86400000 AS BIGINT) BETWEEN 43200000 AND 61199999 THEN positive ELSE 0 END) AS positives_afternoon,
    sum(CASE WHEN ts_ms % CAST(86400000 AS BIGINT) BETWEEN 61200000 AND 79199999 THEN positive ELSE 0 END) AS positives_evening,
    -- The epoch began on a Thursday: day two of each week of milliseconds is a Saturday.
    sum(CASE WHEN ts_ms % CAST(604800000 AS BIGINT) BETWEEN 172800000 AND 345599999 THEN positive ELSE 0 END) AS positives_weekend
  FROM facts
  WHERE ts_ms < {{as_of_ms}}
  GROUP BY user_no
) s
JOIN user_keys k ON k.user_no = s.user_no
JOIN (
  SELECT
    user_no,
    CAST(sum(CASE WHEN positives_28d > 0 THEN 1 ELSE 0 END) AS BIGINT) AS items_28d,
    CAST(sum(CASE WHEN positives_all > 0 THEN 1 ELSE 0 END) AS BIGINT) AS items_all
  FROM pairs
  GROUP BY user_no
) p ON p.user_no = s.user_no
LEFT JOIN (
  SELECT
    user_id,
    CAST(sum(CASE WHEN count_all > 0 THEN 1 ELSE 0 END) AS BIGINT) AS categories_all,
    CAST(sum(CASE WHEN count_28d > 0 THEN 1 ELSE 0 END) AS BIGINT) AS categories_28d,
    max(CASE WHEN place = 1 AND count_all > 0 THEN key ELSE NULL END) AS top_category,
    max(share) AS top_category_share
  FROM user_category
  GROUP BY user_id
) g ON g.user_id = k.user_id
LEFT JOIN (
  SELECT
    user_id,
    CAST(sum(CASE WHEN count_all > 0 THEN 1 ELSE 0 END) AS BIGINT) AS brands_all,
    max(CASE WHEN place = 1 AND count_all > 0 THEN key ELSE NULL END) AS top_brand,
    max(share) AS top_brand_share
  FROM user_brand
  GROUP BY user_id
) b ON b.user_id = k.user_id
LEFT JOIN (
  SELECT
    user_id,
    CAST(sum(CASE WHEN count_all > 0 THEN 1 ELSE 0 END) AS BIGINT) AS departments_all,
    max(CASE WHEN place = 1 AND count_all > 0 THEN key ELSE NULL END) AS top_department,
    max(share) AS top_department_share
  FROM user_department
  GROUP BY user_id
) d ON d.user_id = k.user_id
CROSS JOIN (
  SELECT
    CAST(sum(CASE WHEN impression = 1 THEN click ELSE 0 END) AS DOUBLE)
      / NULLIF(CAST(sum(impression) AS DOUBLE), 0.0E0) AS ctr
  FROM facts
  WHERE ts_ms < {{as_of_ms}}
) c
