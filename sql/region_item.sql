-- Popularity of items in each region over the `long` days before as_of; place 1 is the first.
-- Tables: facts, item_keys. Parameters: as_of_ms; long (days).
SELECT
  s.region,
  k.item_id,
  s.count_{{long}}d,
  CAST(s.count_{{long}}d AS DOUBLE)
    / NULLIF(CAST(sum(s.count_{{long}}d) OVER (PARTITION BY s.region) AS DOUBLE), 0.0E0) AS share_{{long}}d,
  CAST(row_number() OVER (PARTITION BY s.region
                          ORDER BY s.count_{{long}}d DESC NULLS LAST, s.item_no ASC NULLS LAST) AS BIGINT)
    AS place
FROM (
  SELECT region, item_no, sum(positive) AS count_{{long}}d
  FROM facts
  WHERE ts_ms < {{as_of_ms}} AND ts_ms >= {{as_of_ms}} - CAST({{long}} AS BIGINT) * 86400000
    AND region IS NOT NULL AND positive = 1
  GROUP BY region, item_no
) s
JOIN item_keys k ON k.item_no = s.item_no
