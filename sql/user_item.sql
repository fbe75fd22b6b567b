-- The items that each user had most often before as_of, the latest first of equals, in the long form: key
-- is items.item_id. share is of all the user's positives; place 1 is the user's first item, and items beyond
-- {{favourites}} have no row. interval_days is the mean time from one to the next, NULL for a single one; due is
-- how much of it has passed since the last: above 1, another is overdue.
-- Tables: pairs, item_keys, user_keys. Parameters: as_of_ms; medium, long (days); favourites.
SELECT
  k.user_id,
  i.item_id AS key,
  s.positives_{{medium}}d AS count_{{medium}}d,
  s.positives_{{long}}d AS count_{{long}}d,
  s.positives_all AS count_all,
  CAST(s.positives_all AS DOUBLE) / NULLIF(CAST(u.positives_all AS DOUBLE), 0.0E0) AS share,
  CAST(s.last_ms AS DOUBLE) / 86400000.0E0 AS last_day,
  CAST({{as_of_ms}} - s.last_ms AS DOUBLE) / 86400000.0E0 AS days_since,
  s.interval_days,
  CAST({{as_of_ms}} - s.last_ms AS DOUBLE) / 86400000.0E0 / NULLIF(s.interval_days, 0.0E0) AS due,
  s.place
-- A user's sum is no window, and the small sides of the joins come first: see user_group.sql.
FROM item_keys i
JOIN (
  (
    user_keys k
    JOIN (SELECT user_no, sum(positives_all) AS positives_all FROM pairs GROUP BY user_no) u ON u.user_no = k.user_no
  )
  JOIN (
    SELECT
      user_no,
      item_no,
      positives_{{medium}}d,
      positives_{{long}}d,
      positives_all,
      last_ms,
      CAST(last_ms - first_ms AS DOUBLE) / 86400000.0E0 / NULLIF(CAST(positives_all - 1 AS DOUBLE), 0.0E0)
        AS interval_days,
      CAST(row_number() OVER (PARTITION BY user_no
                              ORDER BY positives_all DESC NULLS LAST, last_ms DESC NULLS LAST, item_no ASC NULLS LAST)
           AS BIGINT) AS place
    FROM pairs
    WHERE positives_all > 0
  ) s ON s.user_no = k.user_no
) ON i.item_no = s.item_no
WHERE s.place <= {{favourites}}
