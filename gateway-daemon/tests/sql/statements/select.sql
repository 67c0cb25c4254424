SELECT 1
SELECT
VALUES (1, 2), (3, 4)
TABLE customers
SELECT * FROM customers
SELECT count(*) FROM customers
SELECT id FROM ONLY customers
SELECT c.id, c."name" FROM public.customers AS c
SELECT public.customers.name FROM public.customers
SELECT weirtest_run.public.customers.name FROM weirtest_run.public.customers
SELECT customers.* FROM customers
SELECT public.customers.* FROM customers
SELECT a, d FROM customers AS x(a, b, c, d)
SELECT ctid, tableoid::regclass, xmin FROM orders
SELECT id FROM customers ORDER BY name, 1 DESC NULLS LAST LIMIT 10 OFFSET (SELECT max(line) FROM order_items)
SELECT name AS n FROM customers ORDER BY n
SELECT upper(name) AS name FROM customers GROUP BY name
SELECT upper(name) AS n FROM customers GROUP BY n HAVING count(id) > 1
SELECT DISTINCT ON (country) country, id FROM customers ORDER BY country
SELECT country FROM customers GROUP BY GROUPING SETS ((country), (segment), ()), ROLLUP (name), CUBE (notes)
SELECT o.id FROM orders o JOIN customers c ON c.id = o.customer_id AND o.total > 5
SELECT * FROM orders JOIN payments USING (id)
SELECT total FROM orders JOIN payments USING (id) AS j WHERE j.id = 1
SELECT status FROM orders NATURAL JOIN payments
SELECT j.total FROM (orders o JOIN payments p ON p.order_id = o.id) AS j
SELECT j.a FROM (orders o JOIN payments p ON p.order_id = o.id) AS j(a, b)
SELECT status FROM orders, payments
SELECT x.n FROM (SELECT name AS n FROM customers) x
SELECT missing FROM (SELECT name FROM customers) x, orders
SELECT s.* FROM customers c, LATERAL (SELECT c.name, o.total FROM orders o WHERE o.customer_id = c.id) s
SELECT 1 FROM customers c, (SELECT notes FROM orders) s
SELECT (SELECT max(total) FROM orders WHERE customer_id = customers.id) FROM customers
SELECT (SELECT name FROM orders LIMIT 1) FROM customers
SELECT 1 WHERE EXISTS (SELECT FROM orders WHERE total > 1)
SELECT id FROM orders WHERE customer_id = ANY (SELECT id FROM customers) AND id IN (SELECT order_id FROM payments)
SELECT ARRAY(SELECT name FROM customers), (ARRAY[1, 2])[1]
SELECT CASE status WHEN 'new' THEN total ELSE 0 END, COALESCE(comment, 'x'), NULLIF(id, 1), GREATEST(id, 2) FROM orders
SELECT sum(total) FILTER (WHERE status = 'paid') OVER w, rank() OVER (PARTITION BY customer_id ORDER BY placed_at) FROM orders WINDOW w AS (PARTITION BY status)
SELECT string_agg(comment, ',' ORDER BY placed_at) FROM orders
SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY total) FROM orders
SELECT name FROM customers WHERE name LIKE 'A%' AND country SIMILAR TO 'x' AND notes IS NOT NULL AND id BETWEEN 1 AND 5 AND segment IS DISTINCT FROM 'x'
SELECT name COLLATE "C", id::text, CAST(id AS bigint), created_at AT TIME ZONE 'UTC', EXTRACT(year FROM created_at) FROM customers
SELECT id FROM customers UNION SELECT id FROM orders ORDER BY id
(SELECT id FROM customers LIMIT 1) EXCEPT ALL (SELECT customer_id FROM orders)
WITH c AS (SELECT name FROM customers) SELECT name FROM c
WITH customers AS (SELECT 1 AS ssn) SELECT ssn FROM customers
WITH customers AS (SELECT 1 AS ssn) SELECT ssn FROM public.customers
WITH a AS (SELECT id FROM orders), b AS (SELECT id FROM a) SELECT * FROM b, a
WITH RECURSIVE t(n) AS (VALUES (1) UNION ALL SELECT n + 1 FROM t WHERE n < 5) SELECT n FROM t
WITH RECURSIVE t AS (SELECT id, name FROM customers) SEARCH DEPTH FIRST BY id SET o CYCLE id SET c USING p SELECT * FROM t
WITH d AS (DELETE FROM settings RETURNING key) SELECT key FROM d
SELECT id FROM customers FOR UPDATE
SELECT c.id FROM customers c JOIN orders o ON true FOR SHARE OF o SKIP LOCKED
SELECT 1 FROM (SELECT id FROM customers) x FOR NO KEY UPDATE
SELECT id INTO sandbox.copy FROM customers
SELECT id INTO TEMP t FROM customers
SELECT g FROM generate_series(1, 3) g
SELECT * FROM ROWS FROM (generate_series(1, 2), unnest(ARRAY[1])) WITH ORDINALITY AS r(a, b, n)
SELECT a FROM json_to_record('{}') AS r(a int, b text)
SELECT v FROM customers c, jsonb_each_text(to_jsonb(c)) AS e(k, v)
SELECT id FROM customers TABLESAMPLE system (10) REPEATABLE (1)
SELECT id FROM customers TABLESAMPLE mine (10)
SELECT c FROM customers c
SELECT (c).name FROM customers c
SELECT (c).row_to_json FROM customers c
SELECT (whole).customer_label FROM customer_rows
SELECT c.upper FROM customers c
SELECT c.nowhere FROM customers c
SELECT nowhere FROM customers
SELECT nobody.id FROM customers
SELECT id FROM nowhere
SELECT id FROM nowhere.at_all
SELECT x FROM "Customers", "Odd Schema"."Order ""Log""" AS l(i, x)
SELECT $1, id FROM orders WHERE id = $2
SELECT xmlelement(name a, xmlattributes(id AS i), name), xmlforest(notes AS n) FROM customers
SELECT x.a FROM orders, XMLTABLE('/r' PASSING comment COLUMNS a int PATH 'a' DEFAULT id) x
SELECT JSON_OBJECT('a': name), JSON_ARRAY(id, notes), JSON_QUERY(notes, '$') FROM customers
SELECT JSON_ARRAYAGG(name ORDER BY id), JSON_OBJECTAGG(id: notes) FROM customers
SELECT JSON_ARRAY(SELECT name FROM customers)
SELECT j.a FROM orders, JSON_TABLE(ship_to, '$' PASSING total AS x COLUMNS (a int PATH '$.a' DEFAULT id ON EMPTY, NESTED PATH '$.b' COLUMNS (b int))) j
SELECT ship_to IS JSON OBJECT, JSON_VALUE(ship_to, '$.a' RETURNING int DEFAULT id ON ERROR), JSON_EXISTS(ship_to, '$') FROM orders
SELECT JSON_SCALAR(total), JSON_SERIALIZE(comment), JSON(comment) FROM orders
SELECT id FROM customers c WHERE (id, name) IN (SELECT id, comment FROM orders) AND (c.*) IS NOT NULL
SELECT GROUPING(country), count(*) FROM customers GROUP BY ROLLUP (country)
SELECT current_user, current_date, localtime, session_user, current_schema
