"""What Python programs do with a database by psycopg: each function is a program of its own, named by the argument."""

import asyncio, datetime, decimal, ipaddress, sys, threading, uuid

import psycopg
from psycopg.types.composite import CompositeInfo, register_composite
from psycopg.types.enum import EnumInfo, register_enum
from psycopg.types.json import Json, Jsonb
from psycopg.types.range import Range

# One value of each built-in type that has an input and an output function.
VALUES = """
    bool 't'; int2 '-32768'; int4 '2147483647'; int8 '-9223372036854775808'; float4 '1.5e-10'; float8 'NaN';
    numeric '-12345678901234567890.000123'; money '12.34'; text 'ä€𝄞 \\'; varchar 'varying'; bpchar 'blank  ';
    name 'a_name'; "char" 'c'; bytea '\\x00ff5c'; date '2020-02-29'; time '23:59:59.999999'; timetz '01:02:03+04:30';
    timestamp 'infinity'; timestamptz '1999-12-31 23:59:59.5+00'; interval '1 year -2 days 03:04:05.678';
    uuid 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'; json '{"a": [1, null, "ü"]}'; jsonb '{"b": 1.50, "a": {}}';
    jsonpath '$.a[*] ? (@ > 1)'; inet '192.168.0.1/24'; cidr '2001:db8::/32'; macaddr '08:00:2b:01:02:03';
    macaddr8 '08:00:2b:ff:fe:01:02:03'; bit '1'; varbit '10101'; point '(1,2)'; line '{1,2,3}'; lseg '[(0,0),(1,1)]';
    box '(1,1),(0,0)'; path '[(0,0),(1,1)]'; polygon '((0,0),(1,1),(1,0))'; circle '<(1,2),3>';
    tsvector '''fat'':2A ''rat'':3'; tsquery '''fat'' & !''rat'':*'; int4range '[1,5)'; int8range 'empty';
    numrange '(,1.5]'; daterange '[2020-01-01,)'; tsrange '[2020-01-01 00:00,2020-01-02 00:00)'; tstzrange '(,)';
    int4multirange '{[1,3),[5,7)}'; datemultirange '{}'; oid '4294967295'; regclass 'pg_class'; regtype 'int4';
    regproc 'now'; regrole 'weir_upstream'; xid '7'; xid8 '77'; cid '1'; tid '(1,2)'; pg_lsn '16/B374D848';
    pg_snapshot '10:20:10,14,15'; oidvector '1 2'; int2vector '3 4'; mood 'happy'; percentage '99'; pair '(1,"two")'
"""
TYPES = [value.strip().split(" ", 1) for value in VALUES.split(";")]


def connect(**options):
    # Everything else comes from libpq's variables.
    return psycopg.connect("", autocommit=True, **options)


def types():
    with connect() as c:
        for binary in (False, True):
            cursor = c.cursor(binary=binary)
            for name, value in TYPES:
                cursor.execute(f"SELECT {value}::{name}, ARRAY[{value}::{name}, NULL], NULL::{name}")
            # All in one row, and prepared.
            columns = ", ".join(f"{value}::{name}" for name, value in TYPES)
            cursor.execute(f"SELECT {columns}", prepare=True)
            cursor.execute(f"SELECT {columns}", prepare=True)
            cursor.execute("SELECT ARRAY[[1,2],[3,4]], '[0:1]={5,6}'::int[], '{}'::text[], ROW(1, 'a', NULL), ARRAY[ROW(1,2)]")
            cursor.execute("SELECT * FROM everything ORDER BY id")
        register_enum(EnumInfo.fetch(c, "mood"), c)
        register_composite(CompositeInfo.fetch(c, "pair"), c)
        print(c.execute("SELECT 'sad'::mood, ROW(1, 'x')::pair").fetchone())


def parameters():
    values = [
        True, 1, 1 << 20, 1 << 40, -(1 << 62), 1.5, decimal.Decimal("1.10"), "text", "ü" * 100, b"\0\xff", None,
        datetime.date(2020, 2, 29), datetime.time(1, 2, 3), datetime.datetime(2020, 1, 1, 2, 3, 4, 5),
        datetime.datetime(2020, 1, 1, tzinfo=datetime.timezone.utc), datetime.timedelta(days=1, seconds=2),
        uuid.UUID(int=7), ipaddress.ip_address("10.0.0.1"), ipaddress.ip_network("10.0.0.0/8"),
        Json({"a": 1}), Jsonb([1, "ü", None]), Range(1, 5), Range(datetime.date(2020, 1, 1), None),
        [1, 2, None], ["a", None, 'b"{},\\'], [[1, 2], [3, 4]], [decimal.Decimal(1)], [True, False],
    ]
    with connect() as c:
        for placeholder in ("%s", "%t", "%b"):
            for value in values:
                try:
                    cursor = c.execute(f"SELECT {placeholder}, pg_typeof({placeholder})", (value, value))
                    print(placeholder, cursor.fetchone()[1])
                except psycopg.Error as error:
                    print(placeholder, type(error).__name__)


def statements():
    with connect(prepare_threshold=2) as c:
        c.add_notice_handler(lambda notice: print(notice.severity, notice.message_primary))
        for n in range(5):
            print(c.execute("SELECT %s::int + 1", (n,)).fetchone())
        c.execute("")
        c.execute("SELECT 1; SELECT 'two', 2; UPDATE everything SET t = t WHERE id = 1; SELECT 3")
        cursor = c.execute("SELECT generate_series(1, 3); SHOW DateStyle")
        print(cursor.fetchall(), cursor.nextset(), cursor.fetchall())
        c.execute("DO $$ BEGIN RAISE NOTICE 'one'; RAISE WARNING 'two' USING DETAIL = 'd', HINT = 'h'; END $$")
        c.execute("DROP TABLE IF EXISTS not_there")
        for wrong in (
            "SELECT nothing FROM everything", "SELECT * FROM nowhere", "SELECT 1/0", "SELECT 'x'::int",
            "INSERT INTO everything (id) VALUES (1)", "SELECT no_function(1)", "SELECT 1; SELECT 1/0; SELECT 2",
        ):
            try:
                c.execute(wrong)
            except psycopg.Error as error:
                print(error.sqlstate, error.diag.message_primary, error.diag.statement_position)
        with c.cursor() as cursor:
            cursor.executemany("SELECT %s::text", [("a",), ("b",), (None,)], returning=True)
        print(len(c.execute("SELECT repeat('0123456789', 300000)").fetchone()[0]))
        print(len(c.execute("SELECT %s || 'x'", ("ü" * 1_000_000,)).fetchone()[0]))
        print(len(c.execute("SELECT %b", (b"\0" * 3_000_000,)).fetchone()[0]))
        print(len(c.execute("SELECT n, md5(n::text) FROM generate_series(1, 20000) n").fetchall()))
        c.execute("DEALLOCATE ALL")


def transactions():
    with connect() as c:
        with c.transaction(force_rollback=True):
            c.execute("UPDATE everything SET t = 'changed' WHERE id = 1")
            for wrong in ("SELECT 1/0", "INSERT INTO everything (id) VALUES (1)"):
                try:
                    with c.transaction():
                        c.execute("UPDATE everything SET t = 'inner' WHERE id = 2")
                        c.execute(wrong)
                except psycopg.Error as error:
                    print(error.sqlstate, c.info.transaction_status.name)
            print(c.execute("SELECT id, t FROM everything ORDER BY id").fetchall())
        c.execute("BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY DEFERRABLE")
        try:
            c.execute("UPDATE everything SET t = 'x'")
        except psycopg.Error as error:
            print(error.sqlstate)
        try:
            c.execute("SELECT 1")
        except psycopg.Error as error:
            print(error.sqlstate, c.info.transaction_status.name)
        c.execute("ROLLBACK AND CHAIN")
        c.execute("SAVEPOINT a; SAVEPOINT b; RELEASE a")
        c.execute("COMMIT; COMMIT")


def copies():
    with connect() as c, c.cursor() as cursor:
        for options in ("", "(FORMAT csv, HEADER)", "(FORMAT binary)"):
            with cursor.copy(f"COPY everything TO STDOUT {options}") as copy:
                print(sum(len(part) for part in copy))
        c.execute("BEGIN")
        with cursor.copy("COPY everything (id, t) FROM STDIN") as copy:
            for n in range(100, 5000):
                copy.write_row((n, "copied\t\\" * 10))
        print(cursor.rowcount)
        with cursor.copy("COPY everything (id, t) FROM STDIN (FORMAT binary)") as copy:
            copy.set_types(["int4", "text"])
            for n in range(5000, 5100):
                copy.write_row((n, None))
        print(cursor.rowcount)
        c.execute("ROLLBACK")
        for rows in (b"no number\tx\n", b"1\tthere already\n", b"2000000000\tx\ty\n"):
            try:
                with cursor.copy("COPY everything (id, t) FROM STDIN") as copy:
                    copy.write(rows)
            except psycopg.Error as error:
                print(error.sqlstate, error.diag.context)
        try:
            with cursor.copy("COPY everything (id, t) FROM STDIN") as copy:
                copy.write(b"2000000000\tx\n")
                raise KeyError
        except (KeyError, psycopg.Error) as error:
            print("gave up", type(error).__name__)
        try:
            with cursor.copy("COPY (SELECT 10/(5 - n) FROM generate_series(1, 9) n) TO STDOUT") as copy:
                print([row for row in copy.rows()])
        except psycopg.Error as error:
            print(error.sqlstate)
        print(c.execute("SELECT count(*) FROM everything").fetchone())


def cursors():
    with connect() as c:
        with c.transaction():
            for binary in (False, True):
                with c.cursor(name="a name", scrollable=True, binary=binary) as cursor:
                    cursor.itersize = 3
                    cursor.execute("SELECT n, n::text FROM generate_series(1, %s) n", (10,))
                    print(cursor.fetchmany(2), [row[0] for row in cursor])
                    cursor.scroll(-5)
                    cursor.scroll(1, mode="absolute")
                    print(cursor.fetchone(), cursor.fetchall())
        with c.cursor(name="held", withhold=True) as cursor:
            cursor.execute("SELECT 1 FROM generate_series(1, 5)")
            print(len(cursor.fetchall()))
        try:
            with c.cursor(name="not held") as cursor:
                cursor.execute("SELECT 1")
        except psycopg.Error as error:
            print(error.sqlstate)


def pipelines():
    with connect() as c:
        with c.pipeline():
            cursors = [c.execute("SELECT %s::int, %s::text", (n, "x" * n)) for n in range(100)]
        print(sum(cursor.fetchone()[0] for cursor in cursors))
        with c.pipeline() as pipeline:
            first = c.execute("SELECT 1")
            pipeline.sync()
            try:
                c.execute("UPDATE everything SET t = 'never' WHERE id = 1")
                c.execute("SELECT 1/%s::int", (0,))
                c.execute("SELECT 'skipped'")
                pipeline.sync()
            except psycopg.Error as error:
                print(error.sqlstate)
            last = c.execute("SELECT t FROM everything WHERE id = 1")
            print(first.fetchone(), last.fetchone())
        try:
            with c.transaction(), c.pipeline():
                c.execute("UPDATE everything SET t = 'never' WHERE id = 1")
                c.execute("INSERT INTO everything (id) VALUES (1)")
        except psycopg.Error as error:
            print(error.sqlstate)
        with c.pipeline(), c.cursor() as cursor:
            cursor.executemany("SELECT %s::int", [(n,) for n in range(50)], returning=True)
            print(cursor.fetchone())


# Waits, in one statement, until the other session runs what is to be cancelled.
WAIT = """DO $$ BEGIN
    WHILE NOT EXISTS (SELECT FROM pg_stat_activity WHERE state = 'active' AND datname = current_database()
                      AND query = 'SELECT pg_sleep(600)') LOOP
        PERFORM pg_sleep(0.01); PERFORM pg_stat_clear_snapshot();
    END LOOP; END $$"""


def cancel():
    with connect() as c, connect() as other:
        def when_it_runs():
            other.execute(WAIT)
            c.cancel()

        thread = threading.Thread(target=when_it_runs)
        thread.start()
        try:
            c.execute("SELECT pg_sleep(600)")
        except psycopg.Error as error:
            print(error.sqlstate)
        thread.join()
        print(c.execute("SELECT 'goes on'").fetchone())


def notifications():
    with connect() as c, connect() as other:
        c.add_notify_handler(lambda heard: print(heard.channel, heard.payload, heard.pid == c.info.backend_pid))
        c.execute('LISTEN news; LISTEN "Other News"')
        c.execute("NOTIFY news, 'to myself'")
        with c.transaction():
            c.execute("SELECT pg_notify('Other News', 'first'), pg_notify('news', 'second')")
        other.execute("NOTIFY news, 'from another'")
        print(next(c.notifies()).payload)
        c.execute("UNLISTEN *")
        c.execute("NOTIFY news, 'nobody hears'")


async def in_turn():
    async with await psycopg.AsyncConnection.connect("", autocommit=True) as c:
        async with c.pipeline():
            cursors = [await c.execute("SELECT %s::int8", (n,)) for n in range(30)]
        print(sum([(await cursor.fetchone())[0] for cursor in cursors]))
        async with c.transaction(), c.cursor(name="some") as cursor:
            await cursor.execute("SELECT n FROM generate_series(1, 250) n")
            print(len([row async for row in cursor]))
        async with c.cursor() as cursor:
            async with cursor.copy("COPY (SELECT n FROM generate_series(1, 1000) n) TO STDOUT") as copy:
                print(len([row async for row in copy.rows()]))
            print([row[0] async for row in cursor.stream("SELECT n FROM generate_series(1, 20) n")])
        try:
            async with c.transaction():
                await c.execute("SELECT 1/0")
        except psycopg.Error as error:
            print(error.sqlstate)


def asynchronous():
    asyncio.run(in_turn())


globals()[sys.argv[1]]()
