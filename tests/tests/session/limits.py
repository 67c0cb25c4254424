BIG = "SELECT g, 'a row of some length' FROM generate_series(1, 5000000) g"


class Counting(Client):
    """Shows how many rows came in the place of each."""

    rows = 0

    def show(self, tag, body):
        if tag == b"D":
            self.rows += 1
            return
        if self.rows:
            show("rows below " + str(10 ** len(str(self.rows))))
            self.rows = 0
        super().show(tag, body)


def cut_off():
    c = Counting()
    c.ask(query("BEGIN"))
    c.ask(query(BIG))
    c.ask(query("SELECT 'in the failed transaction'"))
    c.ask(query("ROLLBACK"))
    c.ask(query("SELECT 'after it'"))
    c.ask(parse("SELECT 'prepared'"), bind(), execute(), SYNC)


def cut_off_in_a_pipeline():
    c = Counting()
    c.ask(parse(BIG), bind(), execute(), SYNC)


def copied():
    c = Counting()
    c.ask(query(f"COPY ({BIG}) TO STDOUT"))


def small_steps():
    """Over the limit in many answers that are each complete before anything could be cancelled."""
    c = Counting()
    for _ in range(9):
        c.ask(query("SELECT g FROM generate_series(1, 200) g"))


def filled():
    c = Client()
    try:
        for _ in range(200):
            c.send(query("SELECT string_agg(md5(random()::text), '') FROM generate_series(1, 1000)"))
            tag = None
            while tag != b"Z":
                tag, body = c.take()
                if tag == b"E":
                    c.show(tag, body)
    except (EOFError, OSError):
        show("closed")
    Client()


MANY = "SELECT c.id FROM customers c, generate_series(1, 100) g"
ONE = "SELECT id FROM customers LIMIT 1"


def volume():
    c = Counting()
    c.ask(query(MANY))
    c.ask(query(ONE))
    c.ask(query(ONE))
    c.ask(query("SELECT count(*) FROM orders"))
    Counting().ask(query(ONE))


def volume_in_a_pipeline():
    c = Counting()
    c.send(query(MANY), query(ONE), query(ONE), query(ONE))
    c.ready(4)
    Counting().ask(parse("SELECT 1 FROM orders"), bind(), execute(), SYNC)


def volume_in_one_pipeline():
    c = Counting()
    c.ask(parse(MANY + ", generate_series(1, 2)"), bind(), execute(), bind(), execute(), SYNC)
