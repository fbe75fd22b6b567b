-- Users with events, numbered. Once a run. Tables: events.
SELECT
  user_id,
  CAST(row_number() OVER (ORDER BY user_id ASC NULLS LAST) AS INT) AS user_no
FROM (SELECT user_id FROM events GROUP BY user_id) u
