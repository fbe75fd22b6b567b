-- Items with small numbers in the place of strings: grouping by numbers is several times faster.
-- Once a run. Tables: items.
SELECT
  item_id,
  category,
  brand,
  department,
  price,
  CAST(row_number() OVER (ORDER BY item_id ASC NULLS LAST) AS INT) AS item_no,
  CASE WHEN category IS NULL THEN NULL
       ELSE CAST(dense_rank() OVER (ORDER BY category ASC NULLS LAST) AS INT) END AS category_no,
  CASE WHEN brand IS NULL THEN NULL
       ELSE CAST(dense_rank() OVER (ORDER BY brand ASC NULLS LAST) AS INT) END AS brand_no,
  CASE WHEN department IS NULL THEN NULL
       ELSE CAST(dense_rank() OVER (ORDER BY department ASC NULLS LAST) AS INT) END AS department_no
FROM items
