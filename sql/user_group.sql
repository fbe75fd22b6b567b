-- What each user did with each {{group}} before as_of, in the long form: key is items.{{group}}.
-- share is of all the user's positives with a {{group}}; place 1 is the user's first {{group}}.
-- Tables: facts, item_keys, user_keys. Parameters: group (category, brand or department); as_of_ms; medium, long (days).
SELECT
  k.user_id,
  n.key,
  s.count_{{medium}}d,
  s.count_{{long}}d,
  s.count_all,
  CAST(s.count_all AS DOUBLE) / NULLIF(CAST(u.count_all AS DOUBLE), 0.0E0) AS share,
  CAST(s.count_{{long}}d AS DOUBLE) / NULLIF(CAST(u.count_{{long}}d AS DOUBLE), 0.0E0) AS share_{{long}}d,
  s.revenue_all,
  s.impressions_all,
  CAST(s.clicks_all AS DOUBLE) / NULLIF(CAST(s.impressions_all AS DOUBLE), 0.0E0) AS ctr,
  CAST(s.last_ms AS DOUBLE) / 86400000.0E0 AS last_day,
  CAST({{as_of_ms}} - s.last_ms AS DOUBLE) / 86400000.0E0 AS days_since,
  s.place
-- A user's sums are no window over the places: an engine holds all rows of a window that looks ahead. The small
-- sides of the joins come first (see facts.sql).
FROM (SELECT {{group}}_no, min({{group}}) AS key FROM item_keys GROUP BY {{group}}_no) n
JOIN (
  (
    user_keys k
    JOIN (
      SELECT
        user_no,
        sum(CASE WHEN ts_ms >= {{as_of_ms}} - CAST({{long}} AS BIGINT) * 86400000 THEN positive ELSE 0 END) AS count_{{long}}d,
        sum(positive) AS count_all
      FROM facts
      WHERE ts_ms < {{as_of_ms}} AND {{group}}_no IS NOT NULL
      GROUP BY user_no
    ) u ON u.user_no = k.user_no
  )
  JOIN (
    SELECT
      c.*,
      CAST(row_number() OVER (PARTITION BY c.user_no
                              ORDER BY c.count_all DESC NULLS LAST, c.{{group}}_no ASC NULLS LAST) AS BIGINT)
        AS place
    FROM (
      SELECT
        user_no,
        {{group}}_no,
        sum(CASE WHEN ts_ms >= {{as_of_ms}} - CAST({{medium}} AS BIGINT) * 86400000 THEN positive ELSE 0 END) AS count_{{medium}}d,
        sum(CASE WHEN ts_ms >= {{as_of_ms}} - CAST({{long}} AS BIGINT) * 86400000 THEN positive ELSE 0 END) AS count_{{long}}d,
        sum(positive) AS count_all,
        sum(revenue) AS revenue_all,
        sum(impression) AS impressions_all,
        sum(CASE WHEN impression = 1 THEN click ELSE 0 END) AS clicks_all,
        max(CASE WHEN positive = 1 THEN ts_ms ELSE NULL END) AS last_ms
      FROM facts
      WHERE ts_ms < {{as_of_ms}} AND {{group}}_no IS NOT NULL
      GROUP BY user_no, {{group}}_no
    ) c
  ) s ON s.user_no = k.user_no
) ON n.{{group}}_no = s.{{group}}_no
