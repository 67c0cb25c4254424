"""A PostgreSQL client that speaks in bare messages and prints every message that it gets.

Run with: SCENARIO HOST PORT DATABASE USER STYLE. STYLE `bytes` prints whole messages, `brief` what people look for.
PGPASSWORD is used when a password is asked for. PIECE, when set, is the largest number of bytes that are sent at once.
"""

import base64, hashlib, hmac, os, select, socket, struct, sys

DEADLINE = 60


def message(tag, body=b""):
    return tag + struct.pack("!i", len(body) + 4) + body


def text(value):
    return value.encode() + b"\0"


def query(sql):
    return message(b"Q", text(sql))


def parse(sql, name="", types=()):
    oids = b"".join(struct.pack("!I", oid) for oid in types)
    return message(b"P", text(name) + text(sql) + struct.pack("!h", len(types)) + oids)


def bind(*values, statement="", portal="", formats=(), results=()):
    """Strings are sent as they are, bytes too; formats are 0 for text and 1 for binary."""
    body = text(portal) + text(statement) + struct.pack("!h", len(formats))
    body += b"".join(struct.pack("!h", code) for code in formats) + struct.pack("!h", len(values))
    for value in values:
        if value is None:
            body += struct.pack("!i", -1)
        else:
            value = value if isinstance(value, bytes) else str(value).encode()
            body += struct.pack("!i", len(value)) + value
    body += struct.pack("!h", len(results)) + b"".join(struct.pack("!h", code) for code in results)
    return message(b"B", body)


def execute(portal="", rows=0):
    return message(b"E", text(portal) + struct.pack("!i", rows))


def describe(kind, name=""):
    return message(b"D", kind.encode() + text(name))


def close(kind, name=""):
    return message(b"C", kind.encode() + text(name))


def data(rows):
    return message(b"d", rows)


def fail(why):
    return message(b"f", text(why))


SYNC, FLUSH, DONE, TERMINATE = message(b"S"), message(b"H"), message(b"c"), message(b"X")


def show(line):
    # The agent's other end may be gone; the test sees what is missing.
    print(line, flush=True)


class Client:
    """One connection, started up."""

    # Of the protocol's version.
    minor = 0

    def __init__(self, **settings):
        _, _, host, port, self.database, self.user, self.style = sys.argv[:7]
        self.address = (host, int(port))
        self.piece = int(os.environ.get("PIECE", "0"))
        self.received = b""
        self.socket = self.connect()
        settings = {"user": self.user, "database": self.database, **settings}
        self.send(self.startup(settings))
        self.key = None
        self.greeting()

    def connect(self):
        connected = socket.create_connection(self.address, DEADLINE)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connected

    @classmethod
    def startup(cls, settings):
        body = struct.pack("!i", 3 << 16 | cls.minor) + b"".join(text(k) + text(v) for k, v in settings.items()) + b"\0"
        return struct.pack("!i", len(body) + 4) + body

    def send(self, *messages):
        everything = b"".join(messages)
        step = self.piece or len(everything)
        for start in range(0, len(everything), step):
            self.socket.sendall(everything[start : start + step])

    def fill(self, count):
        while len(self.received) < count:
            more = self.socket.recv(1 << 20)
            if not more:
                raise EOFError
            self.received += more

    def take(self):
        """The next message: its tag and its body."""
        self.fill(5)
        size = 1 + struct.unpack("!i", self.received[1:5])[0]
        self.fill(size)
        whole, self.received = self.received[:size], self.received[size:]
        return whole[:1], whole[5:]

    def greeting(self):
        """Up to the first ReadyForQuery. What is each connection's own is left out: its key and its name."""
        while True:
            tag, body = self.take()
            if tag == b"R" and body[:4] == b"\0\0\0\x0a":
                self.scram()
                continue
            if tag == b"K":
                self.key = body
                if self.style == "bytes":
                    show("K")
            elif self.style == "brief" and tag not in (b"E", b"Z"):
                pass
            elif not (tag == b"S" and body.startswith(b"application_name\0")):
                self.show(tag, body)
            if tag == b"Z" or tag == b"E":
                return

    def scram(self):
        first = "n=,r=" + base64.b64encode(os.urandom(18)).decode()
        initial = ("n,," + first).encode()
        self.send(message(b"p", text("SCRAM-SHA-256") + struct.pack("!i", len(initial)) + initial))
        challenge = self.take()[1][4:].decode()
        fields = dict(field.split("=", 1) for field in challenge.split(","))
        salted = hashlib.pbkdf2_hmac(
            "sha256", os.environ["PGPASSWORD"].encode(), base64.b64decode(fields["s"]), int(fields["i"])
        )
        key = hmac.digest(salted, b"Client Key", "sha256")
        last = "c=biws,r=" + fields["r"]
        signature = hmac.digest(hashlib.sha256(key).digest(), f"{first},{challenge},{last}".encode(), "sha256")
        proof = base64.b64encode(bytes(a ^ b for a, b in zip(key, signature))).decode()
        self.send(message(b"p", f"{last},p={proof}".encode()))
        self.take()

    def show(self, tag, body):
        if tag == b"A":
            # The process that notifies is another one each time.
            body = b"...." + body[4:]
        if self.style == "bytes":
            show(f"{tag.decode()} {body!r}")
        elif tag == b"E" or tag == b"N":
            fields = {field[:1].decode(): field[1:].decode() for field in body.split(b"\0") if field}
            show(f"{tag.decode()} {fields['C']} {fields['M']}" + "".join(f" | {fields[f]}" for f in "DH" if f in fields))
        elif tag == b"D":
            show("D " + ", ".join(self.values(body)))
        elif tag in b"CZAR":
            show(f"{tag.decode()} " + body.rstrip(b"\0").decode(errors="replace"))
        elif tag != b"S":
            show(tag.decode())

    @staticmethod
    def values(body):
        count, at = struct.unpack("!h", body[:2])[0], 2
        for _ in range(count):
            size = struct.unpack("!i", body[at : at + 4])[0]
            at += 4
            yield "NULL" if size < 0 else body[at : at + size].decode(errors="replace")
            at += max(size, 0)

    def until(self, tag, times=1):
        """Shows messages up to the one of this type that comes as the last of `times`."""
        while times:
            try:
                got, body = self.take()
            except (EOFError, ConnectionResetError):
                show("closed")
                return
            self.show(got, body)
            times -= got == tag

    def ready(self, times=1):
        self.until(b"Z", times)

    def ask(self, *messages):
        self.send(*messages)
        self.ready()

    def digest(self):
        """Up to ReadyForQuery, for answers that are too long to show."""
        digest, size, tag = hashlib.sha256(), 0, None
        while tag != b"Z":
            tag, body = self.take()
            digest.update(tag + body)
            size += len(body) + 5
        show(f"{size} bytes {digest.hexdigest()}")

    def cancel(self, key=None):
        with self.connect() as other:
            key = key or self.key
            other.sendall(struct.pack("!ii", 8 + len(key), (1234 << 16) | 5678) + key)
            # The server closes when it has seen to it.
            other.recv(1)


def run():
    globals()[sys.argv[1]]()
