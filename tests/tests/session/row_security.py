"""Scenarios with row security by `weir.subject`. OTHER in the environment is somebody else's subject."""

OTHER = os.environ["OTHER"]

# Each is refused. SUBJECT stands for a constant with somebody else's name.
SETTING = [
    "SET weir.subject = SUBJECT",
    "SET SESSION weir.subject TO SUBJECT",
    "SET LOCAL weir.subject = SUBJECT",
    'SET "Weir"."Subject" = SUBJECT',
    'SET "weir.subject" = SUBJECT',
    "SET WEIR . SUBJECT = SUBJECT",
    "SET weir.agent = SUBJECT",
    "SET weir.issuer = SUBJECT",
    "SET weir.anything = SUBJECT",
    "SET weir.subject TO DEFAULT",
    "RESET weir.subject",
    "BEGIN; SET LOCAL weir.subject = SUBJECT; SELECT body FROM notes; COMMIT",
    "SELECT set_config('weir.subject', SUBJECT, false)",
    "SELECT pg_catalog.set_config('Weir.SUBJECT', SUBJECT, true), body FROM notes",
    "SELECT set_config('weir.' || 'subject', SUBJECT, false)",
    "SELECT set_config(new_value => SUBJECT, is_local => false, setting_name => 'weir.subject')",
    r"SELECT set_config(E'we\x69r.subject', SUBJECT, false)",
    r"SELECT set_config(U&'weir\002Esubject'::text, SUBJECT, 'off')",
    r'SET U&"weir\002Esubject" = SUBJECT',
    "SELECT set_config(n, SUBJECT, false) FROM (VALUES ('weir.subject')) AS v(n)",
    "WITH s AS MATERIALIZED (SELECT set_config('weir.subject', SUBJECT, false)) SELECT body FROM s, notes",
    "EXPLAIN ANALYZE SELECT set_config('weir.subject', SUBJECT, false)",
    "COPY (SELECT set_config('weir.subject', SUBJECT, false)) TO STDOUT",
    "INSERT INTO notes VALUES (SUBJECT, set_config('weir.subject', SUBJECT, false))",
    "PREPARE p AS SELECT set_config($1, $2, false)",
    "PREPARE p AS SELECT set_config('weir.subject', $1, false)",
    "UPDATE pg_settings SET setting = SUBJECT WHERE name = 'weir.subject'",
    "UPDATE pg_catalog.pg_settings SET setting = SUBJECT",
    "SELECT query_to_xml('SELECT set_config(''weir.subject'', ''x'', false)', true, true, '')",
    "DO $$ BEGIN PERFORM set_config('weir.subject', 'x', false); END $$",
    "CREATE FUNCTION f() RETURNS text LANGUAGE sql SET weir.subject = SUBJECT AS 'SELECT body FROM notes'",
    "CREATE FUNCTION f() RETURNS text LANGUAGE sql AS $$ SELECT set_config('weir.subject', 'x', false) $$",
    "ALTER FUNCTION harmless() SET weir.subject = SUBJECT",
    "CREATE PROCEDURE p() LANGUAGE sql AS $$ SELECT set_config('weir.subject', 'x', false) $$",
    "CREATE VIEW v AS SELECT set_config('weir.subject', 'x', false)",
    "CREATE TABLE t (x text DEFAULT set_config('weir.subject', 'x', false))",
    "CREATE RULE r AS ON UPDATE TO orders DO ALSO SELECT set_config('weir.subject', 'x', false)",
    "ALTER ROLE CURRENT_USER SET weir.subject = SUBJECT",
    "ALTER ROLE ALL SET weir.subject = SUBJECT",
    "ALTER DATABASE DATABASE_NAME SET weir.subject = SUBJECT",
    "ALTER ROLE CURRENT_USER IN DATABASE DATABASE_NAME SET weir.subject FROM CURRENT",
    "ALTER SYSTEM SET weir.subject = SUBJECT",
    "SET SESSION AUTHORIZATION postgres",
    "SET ROLE postgres",
    "ALTER TABLE notes DISABLE ROW LEVEL SECURITY",
    "DROP POLICY own ON notes",
    "CREATE EXTENSION dblink",
    "CREATE SERVER s FOREIGN DATA WRAPPER postgres_fdw OPTIONS (options '-c weir.subject=x')",
    "SELECT current_setting('weir.subject')",
    "SHOW weir.subject",
]


def own(c):
    """The rows that the session sees now."""
    rows = c.rows("SELECT owner || ' ' || body FROM notes")
    assert rows, "it sees nothing at all"
    return rows


class Rows(Client):
    def rows(self, *messages):
        """The first value of each row, or the error's code."""
        self.send(*(query(message) if isinstance(message, str) else message for message in messages))
        found, tag = [], None
        while tag != b"Z":
            tag, body = self.take()
            if tag == b"D":
                found += list(self.values(body))[:1]
            elif tag == b"E":
                found.append(next(field[1:].decode() for field in body.split(b"\0") if field[:1] == b"C"))
        return found


def sees():
    show(own(Rows()))


def tries():
    c = Rows()
    before = own(c)
    name = "'" + OTHER + "'"
    for statement in SETTING:
        statement = statement.replace("SUBJECT", name).replace("WEIR . " + name, "WEIR . SUBJECT")
        statement = statement.replace("Weir." + name, "Weir.SUBJECT").replace("DATABASE_NAME", c.database)
        for form in (query(statement), parse(statement) + bind() + execute() + SYNC):
            if form[:1] == b"P" and statement.startswith("BEGIN;"):
                continue
            answer = c.rows(form)
            assert answer[-1:] == ["42501"], (statement, answer)
            assert own(c) == before, statement
    for values in ((), ("weir.subject", OTHER)):
        sql = "SELECT set_config($1, $2, false)" if values else "SELECT set_config($1::text, $1::text, false)"
        answer = c.rows(parse(sql) + bind(*(values or ("weir.subject",))) + execute() + SYNC)
        assert "42501" in answer and own(c) == before, (sql, answer)
    # What is permitted comes back to what Weir set.
    for statement in ("RESET ALL", "DISCARD ALL", "SET work_mem = '1MB'", "BEGIN", "SET LOCAL work_mem = '2MB'", "ROLLBACK"):
        answer = c.rows(statement)
        assert answer == [] and own(c) == before, (statement, answer)
    show(len(SETTING))


def start():
    """What is asked for at the start is refused."""
    for settings in (
        {"weir.subject": OTHER},
        {"Weir.Subject": OTHER},
        {"options": f"-c weir.subject={OTHER}"},
        {"options": f"-cweir.subject={OTHER}"},
        {"options": f"--Weir.subject={OTHER}"},
        {"options": f"-c work_mem=1MB -c WEIR.agent={OTHER}"},
    ):
        Client(**settings)
