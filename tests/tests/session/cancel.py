"""Scenarios with cancel requests."""


def until_answered(c, cancel):
    """Cancels again and again: one that comes before the statement runs is lost, as on any server."""
    while not select.select([c.socket], [], [], 0.1)[0]:
        cancel()
    c.ready()


def own():
    c = Client()
    c.send(query("SELECT pg_sleep(50)"))
    until_answered(c, c.cancel)
    c.ask(query("SELECT 'goes on'"))


def wrong():
    c = Client()
    c.send(query("SELECT pg_sleep(2)"))
    until_answered(c, lambda: [c.cancel(key) for key in (c.key[:7] + bytes([c.key[7] ^ 1]), b"\0" * 8)])


def sleep():
    """Says its key and sleeps until it is cancelled, or not."""
    c = Client()
    show(c.key.hex())
    c.ask(query(f"SELECT pg_sleep({os.environ['SECONDS']})"))


def other():
    """Cancels, by a key that another process was given, until its standard input ends."""
    c = Client()
    key = bytes.fromhex(os.environ["KEY"])
    while not select.select([sys.stdin], [], [], 0.1)[0]:
        c.cancel(key)
        show("cancelled")
