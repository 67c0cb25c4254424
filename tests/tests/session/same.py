"""Scenarios whose answers must be the same through Weir as straight from the server, byte for byte."""


def simple():
    c = Client()
    c.ask(query("SELECT 1; SELECT 2, 'two', NULL::int; SELECT id, name FROM customers ORDER BY id LIMIT 3"))
    c.ask(query(""))
    c.ask(query(" ;; -- nothing\n"))
    c.ask(query("SELECT 1/0"))
    c.ask(query("SELECT 1; SELECT 1/0; SELECT 2"))
    c.ask(query("SELECT nothing_like_it FROM customers"))
    c.ask(query("SELECT * FROM nothing_like_it"))
    c.ask(query("DROP TABLE IF EXISTS nothing_like_it"))
    c.ask(query("DO $$ BEGIN RAISE NOTICE 'noticed %', 1 USING HINT = 'a hint'; END $$"))
    c.ask(query("UPDATE customers SET name = name WHERE id = 1; DELETE FROM customers WHERE id = -1"))
    c.ask(query("SELECT '\\x00ff'::bytea, 'ä€𝄞', repeat('long ', 5000)"))
    # Sent before any is answered.
    c.send(query("SELECT 1"), query("SELECT 1/0"), query(""), query("SELECT 2"))
    c.ready(4)


def transactions():
    c = Client()
    c.ask(query("BEGIN"))
    c.ask(query("BEGIN"))
    c.ask(query("UPDATE customers SET name = 'changed' WHERE id = 1 RETURNING name"))
    c.ask(query("SAVEPOINT s; UPDATE customers SET name = NULL WHERE id = 1"))
    c.ask(query("SELECT 1"))
    c.ask(query("ROLLBACK TO s"))
    c.ask(query("SELECT name FROM customers WHERE id = 1"))
    c.ask(query("SELECT 1/0"))
    c.ask(query("SELECT 1"))
    c.ask(query("COMMIT"))
    c.ask(query("ROLLBACK"))
    c.ask(query("SELECT name FROM customers WHERE id = 1"))
    c.ask(query("BEGIN; SELECT 1; COMMIT; SELECT 2; COMMIT"))


def settings():
    c = Client(TimeZone="Asia/Tokyo", options="-c datestyle=German")
    c.ask(query("SELECT '2020-01-02 03:04:05+00'::timestamptz"))
    c.ask(query("SET TimeZone = 'Europe/Berlin'; SET application_name = 'mine'; SET DateStyle = 'SQL, DMY'"))
    c.ask(query("SELECT '2020-01-02 03:04:05+00'::timestamptz; SHOW TimeZone"))
    c.ask(query("BEGIN; SET LOCAL TimeZone = 'UTC'; ROLLBACK"))
    c.ask(query("SET extra_float_digits = 'much'"))
    c.ask(query("SELECT set_config('IntervalStyle', 'iso_8601', false)"))
    c.ask(query("SET ROLE NONE"))
    c.ask(query("RESET ROLE; RESET SESSION AUTHORIZATION"))
    # Not ALL: the name of the connection falls back to Weir's.
    c.ask(query("RESET TimeZone; RESET extra_float_digits"))


def extended():
    c = Client()
    c.ask(parse("SELECT 1"), bind(), describe("P"), execute(), SYNC)
    c.ask(parse("SELECT id, name FROM customers WHERE id = $1 OR name = $2", "s", (23,)), describe("S", "s"), SYNC)
    c.ask(bind("7", None, statement="s"), execute(), SYNC)
    c.ask(bind(b"\0\0\0\x08", "customer 9", statement="s", formats=(1, 0), results=(1, 0)), execute(), SYNC)
    c.ask(bind("1", "2", "3", statement="s"), execute(), SYNC)
    c.ask(bind("no number", "2", statement="s"), execute(), SYNC)
    c.ask(parse("SELECT 2", "s"), SYNC)
    c.ask(close("S", "s"), close("S", "never was"), close("P", "neither"), parse("SELECT 3", "s"), SYNC)
    c.ask(bind(statement="s"), describe("P"), execute(), SYNC)
    c.ask(parse(""), bind(), describe("P"), execute(), SYNC)
    c.ask(parse("SELECT 1; SELECT 2"), SYNC)
    c.ask(parse("SELECT * FROM nothing_like_it"), bind(), execute(), SYNC)
    c.ask(parse("INSERT INTO orders (id, customer_id, amount) VALUES ($1, $2, $3)"), bind("9", "9999", "1"), execute(), SYNC)
    c.ask(parse("BEGIN"), bind(), execute(), SYNC)
    c.ask(parse("UPDATE customers SET name = $1 WHERE id = 1 RETURNING *"), bind("x"), describe("P"), execute(), SYNC)
    c.ask(parse("ROLLBACK"), bind(), execute(), SYNC)
    # Flush brings the answers out before Sync.
    c.send(parse("SELECT 1", "flushed"), describe("S", "flushed"), FLUSH)
    c.until(b"T")
    c.send(bind(statement="flushed"), execute(), FLUSH)
    c.until(b"C")
    c.ask(SYNC)
    c.ask(query("SELECT 'simple'"))
    c.ask(bind(statement="flushed"), execute(), SYNC)


def pipelines():
    c = Client()
    one = parse("SELECT $1::int"), bind("1"), describe("P"), execute()
    error = parse("SELECT 1/$1::int"), bind("0"), execute()
    c.send(*one, SYNC, *one, *one, SYNC, *error, *one, SYNC, *one, SYNC, SYNC)
    c.ready(5)
    # An error undoes what came before it up to the last Sync, and nothing behind the next one.
    change = parse("UPDATE customers SET name = $1 WHERE id = 2"), bind("never"), execute()
    look = parse("SELECT name FROM customers WHERE id = 2"), bind(), execute()
    c.send(*change, *error, *change, SYNC, *look, SYNC)
    c.ready(2)
    # A statement that is defined behind the error was not defined.
    c.send(parse("SELECT 1", "kept"), SYNC, *error, parse("SELECT 2", "kept"), SYNC, bind(statement="kept"), execute(), SYNC)
    c.ready(3)
    # The names of the first are known to the second before the server has said so.
    c.send(close("S", "kept"), parse("SELECT 3", "kept"), bind(statement="kept", portal="p"), describe("P", "p"), execute("p"), SYNC)
    c.ready()
    c.send(query("SELECT 1"), *one, SYNC, query("SELECT 1/0"), *one, SYNC, query("SELECT 2"))
    c.ready(5)
    c.send(*[m for i in range(300) for m in (parse("SELECT $1::int + $2"), bind(i, 1), execute())], SYNC)
    c.ready()


def portals():
    c = Client()
    c.send(parse("SELECT id FROM customers ORDER BY id LIMIT 7"), bind(), execute(rows=3), execute(rows=3), execute(rows=3), SYNC)
    c.ready()
    c.ask(query("BEGIN"))
    c.ask(parse("SELECT id, name FROM customers ORDER BY id", "s"), bind(statement="s", portal="one"), SYNC)
    c.ask(execute("one", 2), SYNC)
    c.ask(bind(statement="s", portal="two"), execute("two", 1), execute("one", 1), SYNC)
    c.ask(query("SELECT 'between'"))
    c.ask(execute("one", 2), describe("P", "two"), close("P", "two"), SYNC)
    c.ask(parse("UPDATE customers SET name = name WHERE id < 4 RETURNING id"), bind(), execute(rows=2), execute(), SYNC)
    c.ask(bind(statement="s", portal="one"), SYNC)
    c.ask(query("ROLLBACK"))


def prepared_by_sql():
    c = Client()
    c.ask(query("PREPARE p(int) AS SELECT id, name FROM customers WHERE id = $1"))
    c.ask(query("EXECUTE p(3)"))
    c.ask(query("EXECUTE p(3, 4)"))
    c.ask(query("PREPARE p AS SELECT 1"))
    # One and the same name space for both protocols.
    c.ask(describe("S", "p"), bind("4", statement="p"), execute(), SYNC)
    c.ask(parse("SELECT name FROM customers WHERE id = $1", "q"), SYNC)
    c.ask(query("EXECUTE q(5)"))
    c.ask(parse("EXECUTE p(6)"), bind(), describe("P"), execute(), SYNC)
    c.ask(query("PREPARE w(text) AS UPDATE customers SET name = $1 WHERE id = 3"))
    c.ask(query("BEGIN; EXECUTE w('changed'); SELECT name FROM customers WHERE id = 3; ROLLBACK"))
    c.ask(query("EXPLAIN (COSTS OFF) EXECUTE p(1)"))
    c.ask(query("DEALLOCATE p"))
    c.ask(query("PREPARE p AS SELECT 'again'; EXECUTE p"))
    c.ask(query("DEALLOCATE ALL"))
    c.ask(query("PREPARE p AS SELECT 'once more'"))
    c.ask(query("DISCARD ALL"))
    c.ask(query("PREPARE p AS SELECT 'after discard'; EXECUTE p; DEALLOCATE p"))


def cursors():
    c = Client()
    c.ask(query("DECLARE c CURSOR FOR SELECT 1"))
    c.ask(query("BEGIN; DECLARE c SCROLL CURSOR FOR SELECT id, name FROM customers ORDER BY id"))
    c.ask(query("FETCH 2 FROM c"))
    c.ask(query("FETCH BACKWARD 1 FROM c; MOVE 5 IN c; FETCH c"))
    c.ask(describe("P", "c"), execute("c", 2), SYNC)
    c.ask(execute("c", 1), SYNC)
    c.ask(query("FETCH 1 FROM c"))
    c.ask(parse("FETCH 2 FROM c"), bind(), describe("P"), execute(), SYNC)
    c.ask(query("UPDATE customers SET name = 'x' WHERE CURRENT OF c"))
    c.ask(query("ROLLBACK"))
    c.ask(query("BEGIN; DECLARE d CURSOR WITH HOLD FOR SELECT id FROM customers ORDER BY id LIMIT 3; COMMIT"))
    c.ask(query("FETCH ALL FROM d"))
    c.ask(query("CLOSE d"))


def copies():
    c = Client()
    c.ask(query("COPY (SELECT id, name FROM customers ORDER BY id LIMIT 3) TO STDOUT"))
    c.ask(query("COPY (SELECT id, name FROM customers ORDER BY id LIMIT 3) TO STDOUT (FORMAT binary)"))
    c.ask(query("SELECT 1; COPY (SELECT 1) TO STDOUT WITH CSV HEADER; SELECT 2"))
    c.ask(query("COPY (SELECT 1/(3 - id) FROM customers ORDER BY id) TO STDOUT"))
    c.ask(parse("COPY (SELECT 5) TO STDOUT"), bind(), describe("P"), execute(), SYNC)
    c.ask(query("BEGIN"))
    rows = b"".join(b"%d\tcopied %d\te\tc\n" % (i, i) for i in range(2000, 2100))
    c.send(query("COPY customers FROM STDIN"))
    c.until(b"G")
    c.ask(data(rows[:1000]), data(rows[1000:]), data(b""), DONE)
    c.ask(query("SELECT count(*) FROM customers"))
    c.ask(query("ROLLBACK"))
    # All in one go, with two COPYs and a statement behind them.
    c.ask(query("BEGIN; COPY customers FROM STDIN; COPY customers FROM STDIN; SELECT count(*) FROM customers; ROLLBACK"),
          data(b"3000\ta\tb\tc\n"), DONE, data(b"3001\ta\tb\tc\n"), DONE)
    c.ask(query("COPY customers FROM STDIN"), data(b"3000\ta\tb\tc\n"), fail("the client has had enough"))
    # The server fails in the middle, and the client goes on for a while.
    c.send(query("COPY customers FROM STDIN"), data(b"no number\ta\tb\tc\n"), data(rows), data(rows), DONE)
    c.ready()
    c.ask(query("SELECT count(*) FROM customers"))
    c.ask(query("COPY nothing_like_it FROM STDIN"))
    c.ask(query("COPY customers FROM STDIN"), data(b"1\tthere already\tb\tc\n"), DONE)


def copies_extended():
    c = Client()
    rows = b"4000\ta\tb\tc\n4001\ta\tb\tc\n"
    copy = parse("COPY customers FROM STDIN"), bind(), execute()
    c.ask(query("BEGIN"))
    c.send(*copy, FLUSH)
    c.until(b"G")
    c.ask(data(rows), DONE, SYNC)
    c.ask(query("SELECT count(*) FROM customers; ROLLBACK"))
    # Sync comes early, as libraries send it that learn of the COPY from the answer alone: the server passes it over.
    c.ask(query("BEGIN"))
    c.send(*copy, SYNC)
    c.until(b"G")
    c.ask(data(rows), DONE, SYNC)
    c.ask(query("SELECT count(*) FROM customers; ROLLBACK"))
    c.ask(query("BEGIN"))
    c.ask(*copy, SYNC, data(rows), DONE, SYNC)
    c.ask(query("ROLLBACK"))
    c.ask(*copy, data(rows), fail("enough"), SYNC)
    c.ask(*copy, data(b"no number\ta\tb\tc\n"), data(rows), DONE, SYNC)
    c.send(parse("COPY nothing_like_it FROM STDIN"), bind(), execute(), SYNC, data(rows), DONE, SYNC)
    c.ready(2)
    c.ask(query("SELECT count(*) FROM customers"))


def notifications():
    c = Client()
    c.ask(query("LISTEN news"))
    c.ask(query("NOTIFY news, 'to myself'"))
    c.ask(query("BEGIN; NOTIFY news, 'one'; NOTIFY news, 'two'"))
    c.ask(query("COMMIT"))
    other = Client()
    other.ask(query("NOTIFY news, 'while you were idle'"))
    c.until(b"A")
    c.ask(query("SELECT pg_notify('news', 'by function')"))
    c.ask(query("UNLISTEN *"))
    c.ask(query("NOTIFY news, 'nobody hears'"))


def large():
    c = Client()
    c.send(query("SELECT n, repeat('x', 1000) FROM generate_series(1, 100000) n"))
    c.digest()
    c.send(parse("SELECT n, md5(n::text) FROM generate_series(1, 300000) n"), bind(), execute(), SYNC)
    c.digest()
    c.send(query("SELECT repeat('0123456789', 2000000)"))
    c.digest()
    c.send(query("COPY (SELECT n, repeat('y', 100) FROM generate_series(1, 100000) n) TO STDOUT"))
    c.digest()
    c.ask(query("BEGIN; CREATE TEMP TABLE big (n int, filler text)"))
    rows = b"".join(b"%d\t%s\n" % (n, b"z" * 200) for n in range(1000))
    c.send(query("COPY big FROM STDIN"), *[data(rows)] * 100, DONE)
    c.digest()
    c.ask(query("SELECT count(*), sum(n), sum(length(filler)) FROM big; ROLLBACK"))
