
;
-- nothing
BEGIN
START TRANSACTION ISOLATION LEVEL SERIALIZABLE, READ ONLY
COMMIT AND CHAIN
END
ROLLBACK
ABORT AND CHAIN
SAVEPOINT s
RELEASE s
ROLLBACK TO s
PREPARE TRANSACTION 'x'
COMMIT PREPARED 'x'
ROLLBACK PREPARED 'x'
SET CONSTRAINTS ALL DEFERRED
SET work_mem = '1GB'
SET LOCAL statement_timeout TO 1000
SET Application_Name = x
SET TIME ZONE 'UTC'
SET TIME ZONE INTERVAL '1' HOUR
SET TIME ZONE LOCAL
SET NAMES 'UTF8'
SET client_encoding = 'latin1'
SET standard_conforming_strings = off
SET standard_conforming_strings = on
SET standard_conforming_strings = DEFAULT
SET backslash_quote = on
SET search_path = archive, public
SET search_path = 'archive, public'
SET LOCAL SCHEMA 'sandbox'
SET search_path TO DEFAULT
SET search_path = archive; SELECT email FROM customers
SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY
SET TRANSACTION ISOLATION LEVEL REPEATABLE READ
SET TRANSACTION SNAPSHOT '00000003-0000001B-1'
SET XML OPTION DOCUMENT
SET weir.agent = 'x'
SET app.tenant = '7'
SET log_statement = 'all'
SET session_preload_libraries = 'x'
RESET ALL
RESET work_mem
RESET weir.agent
SHOW work_mem
SHOW ALL
SHOW search_path
SHOW hba_file
SHOW TIME ZONE
SHOW transaction_isolation
DISCARD ALL
DISCARD PLANS
DISCARD SEQUENCES
DISCARD TEMP
LISTEN c
UNLISTEN c
UNLISTEN *
PREPARE p (int) AS SELECT name FROM customers WHERE id = $1
PREPARE p AS UPDATE orders SET total = $1
EXECUTE p
EXECUTE p (1, (SELECT 1))
DEALLOCATE p
DEALLOCATE PREPARE ALL
DECLARE c SCROLL CURSOR WITH HOLD FOR SELECT name FROM customers
FETCH FORWARD ALL FROM c
MOVE 3 IN c
CLOSE c
CLOSE ALL
EXPLAIN SELECT name FROM customers
EXPLAIN UPDATE orders SET total = 1 WHERE id = 2
EXPLAIN ANALYZE DELETE FROM orders
EXPLAIN (ANALYZE false, VERBOSE) DELETE FROM orders
EXPLAIN (ANALYZE 0) DELETE FROM orders
EXPLAIN (ANALYZE, ANALYZE off) DELETE FROM orders
EXPLAIN EXECUTE p
EXPLAIN CREATE TABLE t AS SELECT 1
EXPLAIN DECLARE c CURSOR FOR SELECT id FROM orders
SELECT set_config('work_mem', '1GB', true)
SELECT set_config('search_path', 'sandbox, public', false)
SELECT set_config('search_path', name, false) FROM customers
SELECT set_config(name, 'x', false) FROM customers
SELECT set_config('standard_conforming_strings', 'off', false)
SELECT set_config('weir.agent', 'x', false)
SELECT current_setting('work_mem'), current_setting('TimeZone', true)
SELECT current_setting('hba_file')
SELECT current_setting(name) FROM customers
