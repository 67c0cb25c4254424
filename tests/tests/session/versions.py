"""Scenarios with versions of the protocol."""


class Asks(Client):
    """Keeps what the server negotiates."""

    negotiated = None

    def take(self):
        tag, body = super().take()
        if tag == b"v":
            version, count = struct.unpack("!ii", body[:8])
            names = [name.decode() for name in body[8:].split(b"\0") if name]
            assert count == len(names), body
            self.negotiated = f"{version >> 16}.{version & 0xFFFF} {' '.join(names)}".strip()
        return tag, body


def asked(number, **extensions):
    """A connection that asked for 3.NUMBER."""
    return type("Asked", (Asks,), {"minor": number})(**extensions)


def answers():
    """What each version is answered with, and how long the key's secret is then."""
    for number in (0, 1, 2, 3, 9999):
        c = asked(number)
        show(f"3.{number}: {c.negotiated}, {len(c.key) - 4} bytes")
        c.ask(query("SELECT 1"))
    for number in (0, 2, 9999):
        c = asked(number, **{"_pq_.one": "1", "_pq_.test_protocol_negotiation": ""})
        show(f"3.{number} and more: {c.negotiated}, {len(c.key) - 4} bytes")


def keys():
    """A long key cancels as a whole, and no part or extension of it."""
    c = asked(2)
    key = c.key
    c.send(query("SELECT pg_sleep(50)"))
    wrong = [key[:8], key[:-1], key + b"\0", key[:-1] + bytes([key[-1] ^ 1]), key[:4] + b"\0" * 32, key[:4]]
    for _ in range(10):
        for other in wrong:
            c.cancel(other)
    assert not select.select([c.socket], [], [], 0.5)[0], "cancelled by another key"
    while not select.select([c.socket], [], [], 0.1)[0]:
        c.cancel()
    c.ready()
    c.ask(query("SELECT 'goes on'"))
