-- Item aggregates before as_of: one row per item with an event.
-- Click-through rates are smoothed by 20 impressions at the overall rate and are missing where
-- nothing was shown. Tables: facts, pairs, item_keys. Parameters: as_of_ms; short, medium, long (days).
SELECT
  k.item_id,
  s.impressions_{{short}}d, s.impressions_{{medium}}d, s.impressions_{{long}}d, s.impressions_all,
  s.clicks_{{short}}d, s.clicks_{{medium}}d, s.clicks_{{long}}d, s.clicks_all,
  s.purchases_{{short}}d, s.purchases_{{medium}}d, s.purchases_{{long}}d, s.purchases_all,
  s.positives_{{short}}d, s.positives_{{medium}}d, s.positives_{{long}}d, s.positives_all,
  s.revenue_{{short}}d, s.revenue_{{medium}}d, s.revenue_{{long}}d, s.revenue_all,
  p.users_{{medium}}d, p.users_{{long}}d, p.users_all,
  (CAST(s.clicks_{{medium}}d AS DOUBLE) + 20.0E0 * c.ctr) / (CAST(s.impressions_{{medium}}d AS DOUBLE) + 20.0E0) AS ctr_{{medium}}d,
  (CAST(s.clicks_{{long}}d AS DOUBLE) + 20.0E0 * c.ctr) / (CAST(s.impressions_{{long}}d AS DOUBLE) + 20.0E0) AS ctr_{{long}}d,
  (CAST(s.clicks_all AS DOUBLE) + 20.0E0 * c.ctr) / (CAST(s.impressions_all AS DOUBLE) + 20.0E0) AS ctr_all,
  CAST(s.positives_{{medium}}d AS DOUBLE) * ({{long}}.0E0 / {{medium}}.0E0) / NULLIF(CAST(s.positives_{{long}}d AS DOUBLE), 0.0E0)
    AS trend_{{medium}}d_{{long}}d,
  CAST(s.positives_{{short}}d AS DOUBLE) * ({{medium}}.0E0 / {{short}}.0E0) / NULLIF(CAST(s.positives_{{medium}}d AS DOUBLE), 0.0E0)
    AS trend_{{short}}d_{{medium}}d,
  CAST(s.first_ms AS DOUBLE) / 86400000.0E0 AS first_day,
  CAST(s.last_ms AS DOUBLE) / 86400000.0E0 AS last_day,
  CAST(p.users_repeat AS DOUBLE) / NULLIF(CAST(p.users_all AS DOUBLE), 0.0E0) AS repeat_rate,
  CAST(s.positives_all AS DOUBLE) / NULLIF(CAST(p.users_all AS DOUBLE), 0.0E0)
    AS positives_per_user,
  s.revenue_all / NULLIF(CAST(s.purchases_all AS DOUBLE), 0.0E0) AS avg_value,
  s.avg_price_ratio,
  s.avg_basket_value,
  s.avg_basket_size,
  p.rank_{{long}}d, p.rank_all, p.category_rank_{{long}}d, p.category_share_{{long}}d, p.brand_category_share_{{long}}d
FROM (
  SELECT
    item_no,
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
    q.item_no, q.users_{{medium}}d, q.users_{{long}}d, q.users_all, q.users_repeat,
    CAST(rank() OVER (ORDER BY q.positives_{{long}}d DESC NULLS LAST) AS BIGINT) AS rank_{{long}}d,
    CAST(rank() OVER (ORDER BY q.positives_all DESC NULLS LAST) AS BIGINT) AS rank_all,
    CAST(rank() OVER (PARTITION BY n.category_no ORDER BY q.positives_{{long}}d DESC NULLS LAST) AS BIGINT)
      AS category_rank_{{long}}d,
    CAST(q.positives_{{long}}d AS DOUBLE)
      / NULLIF(CAST(sum(q.positives_{{long}}d) OVER (PARTITION BY n.category_no) AS DOUBLE), 0.0E0)
      AS category_share_{{long}}d,
    CAST(q.positives_{{long}}d AS DOUBLE)
      / NULLIF(CAST(sum(q.positives_{{long}}d) OVER (PARTITION BY n.category_no, n.brand_no) AS DOUBLE),
               0.0E0) AS brand_category_share_{{long}}d
  FROM (
    SELECT
      item_no,
      sum(positives_{{long}}d) AS positives_{{long}}d,
      sum(positives_all) AS positives_all,
      CAST(sum(CASE WHEN positives_{{medium}}d > 0 THEN 1 ELSE 0 END) AS BIGINT) AS users_{{medium}}d,
      CAST(sum(CASE WHEN positives_{{long}}d > 0 THEN 1 ELSE 0 END) AS BIGINT) AS users_{{long}}d,
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
