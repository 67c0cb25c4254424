"""One agent's flood: more connections than it may have, pipelines without an end, and big results that nobody reads.

Run with: HOST PORT DATABASE USER CONNECTIONS SESSIONS. Prints `flooding` when SESSIONS of them are sessions, and floods
until it is killed.
"""

import select, socket, struct, sys, time

# A refused connection comes again after so many seconds.
AGAIN = 1.0


def message(tag, body):
    return tag + struct.pack("!i", len(body) + 4) + body


PIPELINE = message(b"Q", b"SELECT 1\0") * 500
# In the list of columns it streams; in FROM the server would first put all of it on its disk.
BIG = message(b"Q", b"SELECT generate_series(1, 100000000), repeat('x', 500)\0")


class Connection:
    def __init__(self, address, startup, role):
        self.role, self.ready, self.due = role, False, startup
        self.socket = socket.socket()
        self.socket.setblocking(False)
        self.socket.connect_ex(address)

    def events(self):
        # A big result is never read.
        reads = 0 if self.ready and self.role == "unread" else select.POLLIN
        return reads | (select.POLLOUT if self.due else 0)

    def send(self):
        self.due = self.due[self.socket.send(self.due) :]
        if not self.due and self.ready and self.role == "pipeline":
            self.due = PIPELINE

    def receive(self):
        """Whether it goes on."""
        data = self.socket.recv(1 << 16)
        if not self.ready and data.endswith(b"Z\0\0\0\x05I"):
            self.ready = True
            self.due = PIPELINE if self.role == "pipeline" else BIG
        return bool(data)


def flood(host, port, database, user, connections, sessions):
    settings = b"user\0%s\0database\0%s\0\0" % (user.encode(), database.encode())
    startup = struct.pack("!ii", len(settings) + 8, 3 << 16) + settings
    address, poll, known, later, told = (host, int(port)), select.poll(), {}, [], False

    def connect(role):
        connection = Connection(address, startup, role)
        known[connection.socket.fileno()] = connection
        poll.register(connection.socket, connection.events())

    for number in range(int(connections)):
        connect("pipeline" if number % 2 else "unread")
    while True:
        for descriptor, _ in poll.poll(100):
            connection = known[descriptor]
            try:
                if connection.due:
                    connection.send()
                goes_on = connection.events() & select.POLLIN == 0 or connection.receive()
            except BlockingIOError:
                goes_on = True
            except OSError:
                goes_on = False
            if goes_on:
                poll.modify(descriptor, connection.events())
                continue
            poll.unregister(descriptor)
            connection.socket.close()
            del known[descriptor]
            later.append((time.monotonic() + AGAIN, connection.role))
        while later and later[0][0] <= time.monotonic():
            connect(later.pop(0)[1])
        if not told and sum(connection.ready for connection in known.values()) >= int(sessions):
            told = True
            print("flooding", flush=True)


flood(*sys.argv[1:7])
