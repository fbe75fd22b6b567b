-- What each user did with each item before as_of. Tables: facts. Parameters: as_of_ms.
SELECT
  user_no,
  item_no,
  sum(positive) AS positives_all,
  sum(CASE WHEN ts_ms >= {{as_of_ms}} - CAST(2419200000 AS BIGINT) THEN positive ELSE 0 END)
    AS positives_28d,
  sum(CASE WHEN ts_ms >= {{as_of_ms}} - CAST(604800000 AS BIGINT) THEN positive ELSE 0 END)
    AS positives_7d
FROM facts
WHERE ts_ms < {{as_of_ms}}
GROUP BY user_no, item_no
