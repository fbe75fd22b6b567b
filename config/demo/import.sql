-- The Complete Journey (84.51°): a year of grocery purchases as canonical tables.
-- Input: transactions.parquet, products.parquet, demographics.parquet.
-- Whatever is derived about an item or a user reads only sales before {{as_of=2017-12-01}}, so that
-- evaluation on later days sees no catalogue from the future.

-- A receipt may list a product twice: one event for each product of a basket. Lines without
-- quantity and without value are no purchases (8,820 of 1,469,307).
CREATE TABLE lines AS
SELECT
  basket_id,
  product_id,
  min(household_id) AS household_id,
  min(transaction_timestamp) AS sold_at,
  'R' || CAST(min(store_id) % 4 AS VARCHAR) AS region,
  sum(quantity) AS quantity,
  sum(sales_value) AS sales_value
FROM transactions
WHERE quantity > 0 OR sales_value > 0
GROUP BY basket_id, product_id;

CREATE VIEW past AS
SELECT * FROM lines WHERE sold_at < TIMESTAMP '{{as_of=2017-12-01}}';

CREATE VIEW recent AS
SELECT * FROM past WHERE sold_at >= TIMESTAMP '{{as_of=2017-12-01}}' - INTERVAL '28 days';

CREATE VIEW events AS
SELECT
  CAST(basket_id AS VARCHAR) || '-' || CAST(product_id AS VARCHAR) AS event_id,
  CAST(household_id AS VARCHAR) AS user_id,
  CAST(product_id AS VARCHAR) AS item_id,
  'purchase' AS event,
  sold_at AS timestamp,
  sales_value AS value,
  region
FROM lines;

CREATE TABLE sold AS
SELECT
  product_id,
  min(sold_at) AS created_at,
  round(median(sales_value / quantity) FILTER (WHERE quantity > 0), 4) AS price
FROM past
GROUP BY product_id;

CREATE TABLE stocked AS
SELECT product_id, array_agg(DISTINCT region ORDER BY region) AS regions
FROM recent
GROUP BY product_id;

CREATE VIEW items AS
SELECT
  CAST(p.product_id AS VARCHAR) AS item_id,
  initcap(COALESCE(p.product_type, p.product_category, p.department))
    || COALESCE(', ' || lower(p.package_size), '') AS title,
  COALESCE(p.product_category, p.department) AS category,
  s.price,
  s.created_at,
  k.product_id IS NOT NULL AS in_stock,
  k.regions,
  CASE
    WHEN p.department = 'SPIRITS'
      OR p.product_category IN ('BEERS/ALES', 'DOMESTIC WINE', 'IMPORTED WINE', 'MISC WINE', 'LIQUOR')
      THEN make_array('alcohol')
    WHEN p.product_category IN ('CIGARETTES', 'CIGARS', 'TOBACCO OTHER')
      THEN make_array('tobacco')
  END AS labels,
  CAST(NULL AS VARCHAR) AS image_url,
  p.department,
  p.brand,
  p.product_type,
  CAST(p.manufacturer_id AS VARCHAR) AS manufacturer,
  TRY_CAST(regexp_match(p.package_size, '^([0-9]*\.?[0-9]+) *([A-Z]+)')[1] AS DOUBLE)
    AS package_size_value,
  regexp_match(p.package_size, '^([0-9]*\.?[0-9]+) *([A-Z]+)')[2] AS package_size_unit
FROM products p
LEFT JOIN sold s ON s.product_id = p.product_id
LEFT JOIN stocked k ON k.product_id = p.product_id;

-- A household lives where it went most often.
CREATE TABLE homes AS
SELECT household_id, region
FROM (
  SELECT
    household_id,
    region,
    row_number() OVER (PARTITION BY household_id ORDER BY count(DISTINCT basket_id) DESC, region)
      AS place
  FROM past
  GROUP BY household_id, region
)
WHERE place = 1;

CREATE VIEW users AS
SELECT
  CAST(h.household_id AS VARCHAR) AS user_id,
  m.region,
  d.age,
  d.income,
  d.home_ownership,
  d.marital_status,
  d.household_size,
  d.household_comp,
  d.kids_count
FROM (SELECT DISTINCT household_id FROM transactions) h
LEFT JOIN homes m ON m.household_id = h.household_id
LEFT JOIN demographics d ON d.household_id = h.household_id;
