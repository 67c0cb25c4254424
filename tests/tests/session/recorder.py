"""Stands between a client and what it takes for the server, and prints every message that the client gets.

Run with: HOST PORT PROGRAM ARGUMENTS. The program is told by libpq's variables to connect here. What it prints comes
last. Only what cannot be the same twice is made so: the process numbers of sessions, and what is each way's own at
start-up (whether a password is asked for, the key for cancels, the name of the connection).
"""

import os, socket, struct, subprocess, sys, threading

DEADLINE = 60


def messages(received):
    """Whole messages, each with its type and body; what is left over is an error."""
    while received:
        size = 1 + struct.unpack("!i", received[1:5])[0]
        assert len(received) >= size, f"a message was cut: {received!r}"
        yield received[:1], received[5:size]
        received = received[size:]


class Connection:
    def __init__(self, client, server):
        self.client, self.server, self.received = client, server, bytearray()
        self.threads = [threading.Thread(target=self.copy, args=ends) for ends in [(client, server), (server, client)]]
        for thread in self.threads:
            thread.start()

    def copy(self, source, target):
        try:
            while more := source.recv(1 << 16):
                if source is self.server:
                    self.received += more
                target.sendall(more)
        except OSError:
            pass
        try:
            target.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def end(self):
        for thread in self.threads:
            thread.join(DEADLINE)
            assert not thread.is_alive(), "a connection was left open"
        self.client.close()
        self.server.close()

    def show(self):
        process = None
        for tag, body in messages(bytes(self.received)):
            if tag == b"R" and body != b"\0\0\0\0":
                continue
            if tag == b"S" and body.startswith(b"application_name\0"):
                continue
            if tag == b"K":
                process, body = body[:4], b"key"
            if tag == b"A":
                body = (b"self " if body[:4] == process else b"other ") + body[4:]
            print(f"{tag.decode()} {body!r}")


def main():
    host, port, program = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
    listener = socket.create_server(("127.0.0.1", 0))
    connections = []

    def accept():
        while True:
            try:
                client = listener.accept()[0]
            except OSError:
                return
            server = socket.create_connection((host, port), DEADLINE)
            server.settimeout(None)
            for end in client, server:
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connections.append(Connection(client, server))

    threading.Thread(target=accept, daemon=True).start()
    told = {"PGHOST": "127.0.0.1", "PGPORT": str(listener.getsockname()[1]), "PGSSLMODE": "disable"}
    ran = subprocess.run(program, env={**os.environ, **told, "PGGSSENCMODE": "disable"}, stdout=subprocess.PIPE)
    listener.close()
    for number, connection in enumerate(connections):
        connection.end()
        print(f"connection {number}")
        connection.show()
    print("program")
    print(ran.stdout.decode(), end="", flush=True)
    sys.exit(ran.returncode)


main()
