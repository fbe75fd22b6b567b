-- Online Retail II (Chen 2019, UCI, CC BY 4.0): two years of a giftware wholesaler's invoices as canonical tables.
-- Input: sales.csv (events.csv.gz, unpacked), products.csv (items.csv), customers.csv (users.csv).
-- Items have a title and nothing else: its words stand for category and kind. Whatever else is said of an item
-- is what its sales say as of each midnight; the columns of items.csv that count sales are left out.

-- An invoice may list a product twice: one event for each product of an invoice.
CREATE VIEW events AS
SELECT
  CAST(invoice AS VARCHAR) || '-' || CAST(item_id AS VARCHAR) AS event_id,
  CAST(min(user_id) AS VARCHAR) AS user_id,
  CAST(item_id AS VARCHAR) AS item_id,
  'purchase' AS event,
  min(CAST(ts AS TIMESTAMP)) AS timestamp,
  sum(quantity * unit_price) AS value,
  min(country) AS region
FROM sales
GROUP BY invoice, item_id;

-- The last word says what it is (HOLDER), the last two which one (T-LIGHT HOLDER), the first often how it
-- looks (RED).
CREATE VIEW items AS
SELECT
  CAST(item_id AS VARCHAR) AS item_id,
  title,
  regexp_match(title, '([^ ]+) *$')[1] AS category,
  regexp_match(title, '([^ ]+ +[^ ]+) *$')[1] AS department,
  regexp_match(title, '^ *([^ ]+)')[1] AS brand,
  CAST(first_seen AS TIMESTAMP) AS created_at,
  TRUE AS in_stock
FROM products;

CREATE VIEW users AS
SELECT CAST(user_id AS VARCHAR) AS user_id, country AS region
FROM customers;
