"""Scenarios of sessions that something ends."""


def when_told():
    """Asks for each line of the standard input, and shows what comes in between."""
    c = Client()
    while c.socket in (readable := select.select([c.socket, sys.stdin], [], [])[0]) or sys.stdin.readline():
        if c.socket in readable:
            return c.ready()
        c.ask(query("SELECT 1"))


def again_at_the_end():
    """When the session ends, tries to begin another."""
    Client().until(b"E")
    Client().ready()


def sleep():
    Client().ask(query("SELECT pg_sleep(50)"))
