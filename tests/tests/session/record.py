"""A session with a bit of everything that the record must tell."""


def everything():
    c = Client()
    c.ask(query("SELECT id, name FROM customers ORDER BY id LIMIT 3"))
    c.ask(parse("SELECT name FROM customers WHERE id = $1 OR name = $2"), bind("42", None), execute(), SYNC)
    c.ask(query("DELETE FROM orders"))
    c.ask(query("SELECT 1; SELECT 1/0"))
    c.ask(query("BEGIN"))
    c.ask(query("COPY customers FROM STDIN"), data(b"7000\tcopied in\te\tc\n"), DONE)
    c.ask(query("ALTER ROLE CURRENT_USER PASSWORD 'hunter2-and-more'"))
    c.ask(query("ROLLBACK"))
    # In one that does not run, in one that cannot be read, in a statement that is prepared.
    c.ask(query("CREATE ROLE nobody_at_all LOGIN PASSWORD 'hunter2-and-more' VALID UNTIL 'never ever'"))
    c.ask(query("ALTER ROLE CURRENT_USER PASSWORD 'hunter2-and-more' NONSENSE"))
    c.ask(parse("ALTER ROLE nobody_at_all PASSWORD 'hunter2-and-more'"), bind(), execute(), SYNC)
    c.send(TERMINATE)
