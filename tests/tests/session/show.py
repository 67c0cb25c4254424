"""A statement that is described once and run many times, with its values in binary."""

SQL = "SELECT id, amount, timestamptz '2026-01-31 12:00:00+00' AS placed FROM orders WHERE id >= $1 ORDER BY id"


def described_once():
    c = Client()
    c.ask(parse(SQL, "s"), describe("S", "s"), SYNC)
    for n in (2, 3, 4):
        c.ask(bind(struct.pack("!i", n), statement="s", formats=(1,), results=(1,)), execute(rows=1), SYNC)
    # Fetched in two goes, in mixed formats.
    c.ask(query("BEGIN"))
    ten = bind(struct.pack("!i", 10), statement="s", portal="p", formats=(1,), results=(1, 0, 1))
    c.ask(ten, execute("p", 1), execute("p", 1), SYNC)
    c.ask(query("COMMIT"))
    c.send(TERMINATE)
