"""What a Python program does with a database by psycopg and psycopg2, told nothing of Weir. Fails at what differs."""

import sys, threading

import psycopg
import psycopg2

address = sys.argv[1]


def is_equal(got, expected):
    assert got == expected, f"{got!r} instead of {expected!r}"


with psycopg.connect(address) as c:
    is_equal(c.execute("SELECT name FROM customers WHERE id = %s", (7,)).fetchone(), ("customer 7",))
    for n in range(20):  # prepared from the sixth on
        is_equal(c.execute("SELECT %s::int + 1", (n,)).fetchone(), (n + 1,))
    with c.cursor(name="named") as cursor:
        cursor.itersize = 7
        cursor.execute("SELECT id FROM customers ORDER BY id")
        is_equal([row[0] for row in cursor], list(range(1, 101)))
    with c.pipeline():
        results = [c.execute("SELECT %s::int", (n,)) for n in range(50)]
    is_equal([result.fetchone()[0] for result in results], list(range(50)))
    try:
        with c.transaction():
            with c.pipeline():
                c.execute("UPDATE customers SET name = 'gone' WHERE id = 1")
                c.execute("SELECT 1/0")
                c.execute("SELECT 1")
        raise AssertionError("no error")
    except psycopg.errors.DivisionByZero:
        pass
    is_equal(c.execute("SELECT name FROM customers WHERE id = 1").fetchone(), ("customer 1",))
    with c.cursor() as cursor:
        cursor.executemany("INSERT INTO customers VALUES (%s, 'many', 'e', 'c')", [(n,) for n in range(500, 600)])
        with cursor.copy("COPY customers FROM STDIN (FORMAT binary)") as copy:
            copy.set_types(["int4", "text", "text", "text"])
            for n in range(600, 700):
                copy.write_row((n, "copied", "e", "c"))
        with cursor.copy("COPY (SELECT id, name FROM customers WHERE id >= 500 ORDER BY id) TO STDOUT") as copy:
            rows = list(copy.rows())
    is_equal((len(rows), rows[0], rows[-1]), (200, ("500", "many"), ("699", "copied")))
    c.rollback()
    is_equal(c.execute("SELECT count(*) FROM customers").fetchone(), (100,))
    timer = threading.Timer(0.5, c.cancel)
    timer.start()
    try:
        c.execute("SELECT pg_sleep(50)")
        raise AssertionError("not cancelled")
    except psycopg.errors.QueryCanceled:
        pass
    c.rollback()

with psycopg.connect(address, autocommit=True) as c:
    c.execute("LISTEN news")
    with psycopg.connect(address, autocommit=True) as other:
        other.execute("NOTIFY news, 'hello'")
    heard = next(c.notifies())
    is_equal(heard.payload, "hello")
    is_equal(heard.pid == c.info.backend_pid, False)
    # A client that passes over what it said itself knows it by this number.
    heard = []
    c.add_notify_handler(heard.append)
    c.execute("NOTIFY news, 'to myself'")
    c.execute("SELECT 1")
    is_equal([(one.payload, one.pid) for one in heard], [("to myself", c.info.backend_pid)])

c = psycopg2.connect(address)
with c, c.cursor() as cursor:
    cursor.execute("SELECT id, amount FROM orders WHERE id = %s", (2,))
    is_equal(str(cursor.fetchone()[1]), "3.00")
    cursor.execute("CREATE TEMP TABLE t (n int); INSERT INTO t SELECT generate_series(1, 10)")
    cursor.execute("SELECT sum(n) FROM t")
    is_equal(cursor.fetchone(), (55,))
    is_equal(c.encoding, "UTF8")
c.close()
print("all as expected")
