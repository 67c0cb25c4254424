INSERT INTO orders (customer_id, total) VALUES (1, 2)
INSERT INTO orders VALUES (1, 2)
INSERT INTO orders DEFAULT VALUES
INSERT INTO sandbox.scratch SELECT id, name FROM customers RETURNING id
INSERT INTO settings AS s (key, value) VALUES ('a', 'b') ON CONFLICT (key) WHERE key > 'a' DO UPDATE SET value = excluded.value || s.value WHERE s.key <> 'z' RETURNING *
INSERT INTO settings (key) VALUES ('a') ON CONFLICT DO NOTHING
INSERT INTO settings (key) VALUES ((SELECT name FROM customers LIMIT 1))
WITH c AS (SELECT id FROM customers) INSERT INTO orders (customer_id) SELECT id FROM c
WITH orders AS (SELECT 1) INSERT INTO orders (customer_id) VALUES (1)
UPDATE orders SET total = 1
UPDATE orders SET total = total + 1, comment = 'x' WHERE id = 3
UPDATE ONLY orders o SET total = c.id FROM customers c WHERE c.id = o.customer_id RETURNING o.*, c.name
UPDATE orders SET (total, comment) = (SELECT amount, method FROM payments WHERE order_id = orders.id)
UPDATE products SET tags[1] = title, attrs = DEFAULT
UPDATE orders SET total = 1 WHERE CURRENT OF c
UPDATE orders SET total = 1 RETURNING WITH (OLD AS o, NEW AS n) o.total, n.status
DELETE FROM orders
DELETE FROM orders WHERE id = 1
DELETE FROM orders o USING customers c WHERE c.id = o.customer_id AND c.name = 'x' RETURNING *
MERGE INTO settings s USING products p ON p.sku = s.key WHEN MATCHED AND s.value = 'x' THEN DELETE WHEN MATCHED THEN UPDATE SET value = p.title WHEN NOT MATCHED THEN INSERT (key) VALUES (p.sku)
MERGE INTO settings s USING (SELECT 1 AS a) q ON false WHEN NOT MATCHED THEN INSERT DEFAULT VALUES WHEN MATCHED THEN DO NOTHING
COPY orders FROM STDIN
COPY orders (id, total) FROM STDIN WITH (FORMAT csv) WHERE total > 5
COPY orders TO STDOUT
COPY customers (id, name) TO STDOUT (FORMAT binary)
COPY (SELECT name FROM customers) TO STDOUT
COPY (DELETE FROM settings RETURNING value) TO STDOUT
COPY orders FROM '/tmp/x'
COPY orders TO '/tmp/x'
COPY orders TO PROGRAM 'cat'
COPY (SELECT 1) TO PROGRAM 'cat'
TRUNCATE orders, ONLY payments RESTART IDENTITY CASCADE
LOCK TABLE orders
LOCK TABLE orders, payments IN ACCESS SHARE MODE
LOCK orders IN ROW SHARE MODE NOWAIT
CALL touch_order(1)
CALL public.touch_order((SELECT max(id) FROM orders))
CALL lower('x')
SELECT nextval('ticket_seq')
SELECT nextval('public.ticket_seq'::regclass), currval('"ticket_seq"'), setval('ticket_seq', 1), lastval()
SELECT nextval(name) FROM customers
NOTIFY c, 'payload'
SELECT pg_notify('c', name) FROM customers
SELECT pg_notify(name, 'x') FROM customers
REFRESH MATERIALIZED VIEW CONCURRENTLY customer_directory
VACUUM
VACUUM (FULL, ANALYZE) orders (id), payments
ANALYZE orders
REINDEX TABLE orders
REINDEX INDEX orders_customer
REINDEX SCHEMA public
REINDEX DATABASE weirtest_run
CLUSTER
CLUSTER orders USING orders_pkey
CHECKPOINT
UPDATE pg_settings SET setting = 'x' WHERE name = 'search_path'
INSERT INTO pg_catalog.pg_proc DEFAULT VALUES
DELETE FROM information_schema.tables
SELECT relname FROM pg_class FOR UPDATE
