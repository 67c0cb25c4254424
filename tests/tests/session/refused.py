"""Scenarios in which Weir refuses something."""


def statement():
    c = Client()
    c.ask(query("DELETE FROM orders WHERE id = 1"))
    c.ask(query("SELECT name FROM customers WHERE id = 1"))
    c.ask(parse("DELETE FROM orders"), bind(), execute(), SYNC)
    c.ask(query("DROP TABLE orders"))
    c.ask(query("COPY customers TO PROGRAM 'cat'"))
    c.ask(query("SELECT pg_read_file('/etc/passwd')"))
    c.ask(query("SELEC 1"))


def transaction():
    c = Client()
    c.ask(query("BEGIN"))
    c.ask(query("UPDATE customers SET name = 'changed' WHERE id = 1"))
    c.ask(query("DELETE FROM orders"))
    c.ask(query("SELECT 1"))
    c.ask(query("COMMIT"))
    c.ask(query("SELECT name FROM customers WHERE id = 1"))
    c.ask(query("BEGIN; SAVEPOINT s"))
    c.ask(parse("DELETE FROM orders"), SYNC)
    c.ask(query("ROLLBACK TO s; SELECT 'goes on'; COMMIT"))


def several():
    c = Client()
    c.ask(query("UPDATE customers SET name = 'changed' WHERE id = 1; DELETE FROM orders; SELECT 1"))
    c.ask(query("SELECT name FROM customers WHERE id = 1"))
    c.ask(query("COMMIT; BEGIN; UPDATE customers SET name = 'changed' WHERE id = 1; COMMIT; DELETE FROM orders"))
    c.ask(query("SELECT name FROM customers WHERE id = 1"))


def pipeline():
    c = Client()
    change = parse("UPDATE customers SET name = 'changed' WHERE id = 1"), bind(), execute()
    refused = parse("DELETE FROM orders"), bind(), execute()
    look = parse("SELECT name FROM customers WHERE id = 1"), bind(), execute()
    c.send(*change, *refused, *change, SYNC, *look, SYNC)
    c.ready(2)


def names():
    c = Client()
    c.ask(bind(statement="nobody made it"), execute(), SYNC)
    c.ask(bind(), SYNC)
    c.ask(execute("no portal"), SYNC)
    c.ask(describe("S", "nor this"), SYNC)
    c.ask(query("EXECUTE nothing"))
    c.ask(query("BEGIN"))
    c.ask(query("FETCH 1 FROM nowhere"))
    c.ask(query("ROLLBACK"))
    c.ask(parse("SELECT 1", "mine"), parse("DELETE FROM orders", "mine"), SYNC)
    c.ask(parse("DELETE FROM orders", "refused"), SYNC)
    c.ask(bind(statement="refused"), execute(), SYNC)


def after_reload():
    c = Client()
    c.ask(parse("UPDATE customers SET name = name WHERE id = 1", "s"), bind(statement="s"), execute(), SYNC)
    c.ask(query("PREPARE t AS UPDATE customers SET name = name WHERE id = 2; EXECUTE t"))
    show("prepared")
    sys.stdin.readline()
    c.ask(bind(statement="s"), execute(), SYNC)
    c.ask(query("EXECUTE t"))
    c.ask(query("SELECT name FROM customers WHERE id = 1"))


def unknown_type():
    c = Client()
    c.send(message(b"y", b"what is this"))
    c.ready()


def trailing_bytes():
    c = Client()
    c.send(message(b"Q", b"SELECT 1\0DELETE FROM orders\0"))
    c.ready()


def oversized():
    c = Client()
    c.send(b"Q" + struct.pack("!i", 100 << 20))
    c.ready()


def too_short():
    c = Client()
    c.send(b"Q" + struct.pack("!i", 3))
    c.ready()


def long_statement():
    c = Client()
    c.ask(query("SELECT '" + "x" * 200_000 + "'"))
    c.ask(query("SELECT 1"))


def query_in_copy():
    c = Client()
    c.send(query("COPY customers FROM STDIN"))
    c.until(b"G")
    c.send(data(b"5000\ta\tb\tc\n"), query("SELECT 1"))
    c.ready()


def replication():
    Client(replication="database").ready()


def encoding():
    Client(client_encoding="SJIS").ready()


def start_option():
    Client(options="-c session_replication_role=replica").ready()


def other_database():
    sys.argv[4] = "postgres"
    Client().ready()


def old_protocol():
    c = Client.__new__(Client)
    c.address, c.received, c.piece, c.style = (sys.argv[2], int(sys.argv[3])), b"", 0, "brief"
    c.socket = c.connect()
    c.socket.sendall(struct.pack("!ii", 8, 2 << 16))
    c.ready()


def stuffed():
    """What an interceptor would put behind a request for encryption."""
    c = Client.__new__(Client)
    c.address, c.received, c.piece, c.style = (sys.argv[2], int(sys.argv[3])), b"", 0, "brief"
    c.socket = c.connect()
    c.socket.sendall(struct.pack("!ii", 8, (1234 << 16) | 5679) + Client.startup({"user": "x"}))
    c.ready()


def connections():
    kept = [Client(), Client()]
    Client().ready()
    kept.pop().socket.close()
    # The daemon may need a moment to see that one is gone; only the last try is shown.
    shown, globals()["show"] = show, lambda line: None
    while Client().key is None:
        pass
    globals()["show"] = shown
    kept.pop().ask(query("SELECT 'the first goes on'"))


def deep_and_wide():
    c = Client()
    c.ask(query("SELECT " + "(" * 9 + "1" + ")" * 9))
    c.ask(query("SELECT 1" + ", 1" * 50))
    c.ask(query("SELECT 1"))


def idle():
    Client().ready()


def silent():
    c = Client.__new__(Client)
    c.address, c.received, c.piece, c.style = (sys.argv[2], int(sys.argv[3])), b"", 0, "brief"
    c.socket = c.connect()
    c.ready()


def many_names():
    c = Client()
    c.ask(*[parse("SELECT 1", f"s{n}") for n in range(4)], SYNC)
    c.ask(bind(statement="s1"), execute(), SYNC)
    c.ask(query("DEALLOCATE ALL"))
    c.ask(parse("SELECT 1", "room again"), SYNC)


def long_pipeline():
    c = Client()
    c.send(*[m for n in range(200) for m in (parse("SELECT $1::int"), bind(n), execute())], SYNC)
    c.ready()


def reading():
    c = Client()
    c.ask(query("SET standard_conforming_strings = off"))
    c.ask(query("SELECT set_config('standard_conforming_strings', 'false', false)"))
    c.ask(query("SET client_encoding = 'SJIS'"))
    c.ask(query("SHOW standard_conforming_strings"))


def function_call():
    c = Client()
    # lo_creat(INV_WRITE), by its OID.
    call = message(b"F", struct.pack("!IhhhiiH", 957, 1, 1, 1, 4, 0x20000, 1))
    c.ask(call)
    c.ask(query("BEGIN"))
    c.ask(call)
    c.ask(query("ROLLBACK"))
    # Behind an error the server skips it up to Sync, as it does any other message.
    c.ask(parse("SELECT 1/0"), bind(), execute(), call, SYNC)
    c.ask(query("SELECT count(*) FROM pg_largeobject_metadata"))
