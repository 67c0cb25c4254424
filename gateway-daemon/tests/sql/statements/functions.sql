SELECT lower(name), pg_catalog.upper(name), now(), count(*) FROM customers
SELECT add_vat(total), public.order_total(id) FROM orders
SELECT nowhere(1)
SELECT nowhere.f(1)
SELECT pg_catalog.nowhere(1)
SELECT public.lower('x')
SELECT repeat('x', 10), lpad('x', 3), rpad('x', 65536)
SELECT repeat('x', 100000000)
SELECT repeat('x', id) FROM customers
SELECT pg_sleep(1)
SELECT pg_advisory_lock(1)
SELECT query_to_xml('SELECT 1', true, false, '')
SELECT ts_rewrite('a'::tsquery, 'SELECT 1')
SELECT * FROM dblink('x', 'SELECT 1') AS t(a int)
SELECT public.dblink_exec('x', 'DROP TABLE t')
SELECT * FROM crosstab('SELECT 1') AS t(a int)
SELECT lo_get(1), loread(1, 2)
SELECT similarity('a', 'b'), hstore(c) FROM customers c
SELECT name % 'x', attrs -> 'a', attrs @> '{}' FROM customers, products
SELECT 1 OPERATOR(pg_catalog.+) 2
SELECT 1 OPERATOR(public.+) 2
SELECT id FROM customers ORDER BY name USING OPERATOR(public.<)
SELECT id FROM customers ORDER BY name USING <
SELECT 'customers'::regclass, 'public.add_vat'::regproc, to_regclass('x')
SELECT usename FROM pg_user
SELECT * FROM pg_shadow
SELECT rolpassword FROM pg_authid
SELECT attname, n_distinct FROM pg_stats
SELECT * FROM pg_stats
SELECT s FROM pg_stats s
SELECT count(*) FROM pg_stats WHERE most_common_vals IS NOT NULL
SELECT pid, state FROM pg_stat_activity
SELECT query FROM pg_stat_activity
SELECT subname FROM pg_subscription
SELECT subconninfo FROM pg_subscription
SELECT * FROM information_schema.columns
SELECT * FROM information_schema.user_mapping_options
SELECT * FROM pg_toast.pg_toast_1247
SELECT * FROM pg_largeobject
SELECT prosrc FROM pg_proc
SELECT extract(day FROM created_at), overlay(name PLACING 'x' FROM 1), position('a' IN name), trim(name), substring(name FROM 1) FROM customers
SELECT (customer_by_id(7)).ssn
SELECT (customer_by_id(7)).customer_label
SELECT f.* FROM customer_by_id(7) f
SELECT f.customer_label FROM customer_by_id(7) f
