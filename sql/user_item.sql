-- The items that each user had most often before as_of, the latest first of equals, in the long form: key
-- is items.item_id. share is of all the user's positives; place 1 is the user's first item, and items beyond
-- {{favourites}} have no row.
-- Tables: pairs, item_keys, user_keys. Parameters: as_of_ms; medium, long (days); favourites.
SELECT
  k.user_id,
  i.item_id AS key,
  s.positives_{{medium}}d AS count_{{medium}}d,
  s.positives_{{long}}d AS count_{{long}}d,
  s.positives_all AS count_all,
  CAST(s.positives_all AS DOUBLE) / NULLIF(CAST(s.positives_user AS DOUBLE), 0.0E0) AS share,
  CAST(s.last_ms AS DOUBLE) / 86400000.0E0 AS last_day,
  CAST({{as_of_ms}} - s.last_ms AS DOUBLE) / 86400000.0E0 AS days_since,
  s.place
FROM (
  SELECT
    user_no,
    item_no,
    positives_{{medium}}d,
    positives_{{long}}d,
    positives_all,
    last_ms,
    sum(positives_all) OVER (PARTITION BY user_no) AS positives_user,
    CAST(row_number() OVER (PARTITION BY user_no
                            ORDER BY positives_all DESC NULLS LAST, last_ms DESC NULLS LAST, item_no ASC NULLS LAST)
         AS BIGINT) AS place
  FROM pairs
  WHERE positives_all > 0
) s
JOIN user_keys k ON k.user_no = s.user_no
JOIN item_keys i ON i.item_no = s.item_no
WHERE s.place <= {{favourites}}
