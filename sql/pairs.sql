-- What each user did with each item before as_of. Tables: facts. Parameters: as_of_ms; medium, long (days).
SELECT
  user_no,
  item_no,
  sum(positive) AS positives_all,
  sum(CASE WHEN ts_ms >= {{as_of_ms}} - CAST({{long}} AS BIGINT) * 86400000 THEN positive ELSE 0 END)
    AS positives_{{long}}d,
  sum(CASE WHEN ts_ms >= {{as_of_ms}} - CAST({{medium}} AS BIGINT) * 86400000 THEN positive ELSE 0 END)
    AS positives_{{medium}}d,
  min(CASE WHEN positive = 1 THEN ts_ms ELSE NULL END) AS first_ms,
  max(CASE WHEN positive = 1 THEN ts_ms ELSE NULL END) AS last_ms
FROM facts
WHERE ts_ms < {{as_of_ms}}
GROUP BY user_no, item_no
