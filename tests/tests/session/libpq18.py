"""An agent with the client library of PostgreSQL 18: what it asks for, it gets of Weir, whatever the server is."""

import sys, threading, time
import psycopg

assert psycopg.pq.version() >= 180000, psycopg.pq.version()


def connect(**more):
    return psycopg.connect(sys.argv[1], autocommit=True, **more)


for asked, spoken in [({}, 30000), ({"max_protocol_version": "3.0"}, 30000), ({"max_protocol_version": "latest"}, 30002),
                      ({"min_protocol_version": "3.2", "max_protocol_version": "3.2"}, 30002)]:
    with connect(**asked) as connection:
        assert connection.pgconn.full_protocol_version == spoken, (asked, connection.pgconn.full_protocol_version)
        assert connection.execute("SELECT 1 + %s", [1]).fetchone() == (2,)
        begun = time.monotonic()
        stop = threading.Event()

        def cancel():
            # One that comes before the statement runs is lost.
            while not stop.wait(0.1):
                connection.cancel_safe(timeout=10)

        thread = threading.Thread(target=cancel)
        thread.start()
        try:
            connection.execute("SELECT pg_sleep(50)")
        except psycopg.errors.QueryCanceled:
            pass
        finally:
            stop.set()
            thread.join()
        assert time.monotonic() - begun < 40
        assert connection.execute("SELECT 'goes on'").fetchone() == ("goes on",)
print("all as expected")
