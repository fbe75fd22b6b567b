-- User aggregates before as_of: one row per user with an event.
-- Click-through rates are smoothed by 20 impressions at the overall rate and are missing where
-- nothing was shown. Tables: facts, pairs, user_keys, user_category, user_brand, user_department.
-- Parameters: as_of_ms; short, medium, long (days).
SELECT
  k.user_id,
  s.impressions_{{short}}d, s.impressions_{{medium}}d, s.impressions_{{long}}d, s.impressions_all,
  s.clicks_{{short}}d, s.clicks_{{medium}}d, s.clicks_{{long}}d, s.clicks_all,
  s.purchases_{{short}}d, s.purchases_{{medium}}d, s.purchases_{{long}}d, s.purchases_all,
  s.positives_{{short}}d, s.positives_{{medium}}d, s.positives_{{long}}d, s.positives_all,
  s.revenue_{{short}}d, s.revenue_{{medium}}d, s.revenue_{{long}}d, s.revenue_all,
  (CAST(s.clicks_{{medium}}d AS DOUBLE) + 20.0E0 * c.ctr) / (CAST(s.impressions_{{medium}}d AS DOUBLE) + 20.0E0) AS ctr_{{medium}}d,
  (CAST(s.clicks_{{long}}d AS DOUBLE) + 20.0E0 * c.ctr) / (CAST(s.impressions_{{long}}d AS DOUBLE) + 20.0E0) AS ctr_{{long}}d,
  (CAST(s.clicks_all AS DOUBLE) + 20.0E0 * c.ctr) / (CAST(s.impressions_all AS DOUBLE) + 20.0E0) AS ctr_all,
  s.baskets_{{medium}}d, s.baskets_{{long}}d, s.baskets_all,
  s.basket_value_all / NULLIF(CAST(s.baskets_all AS DOUBLE), 0.0E0) AS avg_basket_value,
  CAST(s.basket_size_all AS DOUBLE) / NULLIF(CAST(s.baskets_all AS DOUBLE), 0.0E0)
    AS avg_basket_size,
  s.revenue_all / NULLIF(CAST(s.purchases_all AS DOUBLE), 0.0E0) AS avg_value,
  s.avg_price_ratio,
  CAST(s.last_ms - s.first_ms AS DOUBLE) / 86400000.0E0
    / NULLIF(CAST(s.baskets_all - CAST(1 AS BIGINT) AS DOUBLE), 0.0E0) AS days_between_baskets,
  CAST(s.positives_{{medium}}d AS DOUBLE) * ({{long}}.0E0 / {{medium}}.0E0) / NULLIF(CAST(s.positives_{{long}}d AS DOUBLE), 0.0E0)
    AS trend_{{medium}}d_{{long}}d,
  CAST(s.first_ms AS DOUBLE) / 86400000.0E0 AS first_day,
  CAST(s.last_ms AS DOUBLE) / 86400000.0E0 AS last_day,
  CAST(s.positives_morning AS DOUBLE) / NULLIF(CAST(s.positives_all AS DOUBLE), 0.0E0) AS share_morning,
  CAST(s.positives_afternoon AS DOUBLE) / NULLIF(CAST(s.positives_all AS DOUBLE), 0.0E0) AS share_afternoon,
  CAST(s.positives_evening AS DOUBLE) / NULLIF(CAST(s.positives_all AS DOUBLE), 0.0E0) AS share_evening,
  CAST(s.positives_weekend AS DOUBLE) / NULLIF(CAST(s.positives_all AS DOUBLE), 0.0E0) AS share_weekend,
  p.items_{{long}}d, p.items_all,
  CAST(s.positives_all - p.items_all AS DOUBLE) / NULLIF(CAST(s.positives_all AS DOUBLE), 0.0E0)
    AS repeat_share,
  g.categories_all, g.categories_{{long}}d, g.top_category, g.top_category_share,
  b.brands_all, b.top_brand, b.top_brand_share,
  d.departments_all, d.top_department, d.top_department_share
FROM (
  SELECT
    user_no,
    sum(CASE WHEN ts_ms >= {{as_of_ms}} - CAST({{short}} AS BIGINT) * 86400000 THEN impression ELSE 0 END) AS impressions_{{short}}d,
    sum(CASE WHEN ts_ms >= {{as_of_ms}} - CAST({{medium}} AS BIGINT) * 86400000 THEN impression ELSE 0 END) AS impressions_{{medium}}d,
    sum(CASE WHEN ts_ms >= {{as_of_ms}} - CAST({{long}} AS BIGINT) * 86400000 THEN impression ELSE 0 END) AS impressions_{{long}}d,
    sum(impression) AS impressions_all,
    sum(CASE WHEN ts_ms >= {{as_of_ms}} - CAST({{short}} AS BIGINT) * 86400000 THEN click ELSE 0 END) AS clicks_{{short}}d,
    sum(CASE WHEN ts_ms >= {{as_of_ms}} - CAST({{medium}} AS BIGINT) * 86400000 THEN click ELSE 0 END) AS clicks_{{medium}}d,
    sum(CASE WHEN ts_ms >= {{as_of_ms}} - CAST({{long}} AS BIGINT) * 86400000 THEN click ELSE 0 END) AS clicks_{{long}}d,
    sum(click) AS clicks_all,
    sum(CASE WHEN ts_ms >= {{as_of_ms}} - CAST({{short}} AS BIGINT) * 86400000 THEN purchase ELSE 0 END) AS purchases_{{short}}d,
    sum(CASE WHEN ts_ms >= {{as_of_ms}} - CAST({{medium}} AS BIGINT) * 86400000 THEN purchase ELSE 0 END) AS purchases_{{medium}}d,
    sum(CASE WHEN ts_ms >= {{as_of_ms}} - CAST({{long}} AS BIGINT) * 86400000 THEN purchase ELSE 0 END) AS purchases_{{long}}d,
    sum(purchase) AS purchases_all,
    sum(CASE WHEN ts_ms >= {{as_of_ms}} - CAST({{short}} AS BIGINT) * 86400000 THEN positive ELSE 0 END) AS positives_{{short}}d,
    sum(CASE WHEN ts_ms >= {{as_of_ms}} - CAST({{medium}} AS BIGINT) * 86400000 THEN positive ELSE 0 END) AS positives_{{medium}}d,
    sum(CASE WHEN ts_ms >= {{as_of_ms}} - CAST({{long}} AS BIGINT) * 86400000 THEN positive ELSE 0 END) AS positives_{{long}}d,
    sum(positive) AS positives_all,
    sum(CASE WHEN ts_ms >= {{as_of_ms}} - CAST({{short}} AS BIGINT) * 86400000 THEN revenue ELSE 0.0E0 END) AS revenue_{{short}}d,
    sum(CASE WHEN ts_ms >= {{as_of_ms}} - CAST({{medium}} AS BIGINT) * 86400000 THEN revenue ELSE 0.0E0 END) AS revenue_{{medium}}d,
    sum(CASE WHEN ts_ms >= {{as_of_ms}} - CAST({{long}} AS BIGINT) * 86400000 THEN revenue ELSE 0.0E0 END) AS revenue_{{long}}d,
    sum(revenue) AS revenue_all,
    sum(CASE WHEN ts_ms >= {{as_of_ms}} - CAST({{medium}} AS BIGINT) * 86400000 THEN basket_first ELSE 0 END) AS baskets_{{medium}}d,
    sum(CASE WHEN ts_ms >= {{as_of_ms}} - CAST({{long}} AS BIGINT) * 86400000 THEN basket_first ELSE 0 END) AS baskets_{{long}}d,
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
    CAST(sum(CASE WHEN positives_{{long}}d > 0 THEN 1 ELSE 0 END) AS BIGINT) AS items_{{long}}d,
    CAST(sum(CASE WHEN positives_all > 0 THEN 1 ELSE 0 END) AS BIGINT) AS items_all
  FROM pairs
  GROUP BY user_no
) p ON p.user_no = s.user_no
LEFT JOIN (
  SELECT
    user_id,
    CAST(sum(CASE WHEN count_all > 0 THEN 1 ELSE 0 END) AS BIGINT) AS categories_all,
    CAST(sum(CASE WHEN count_{{long}}d > 0 THEN 1 ELSE 0 END) AS BIGINT) AS categories_{{long}}d,
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
