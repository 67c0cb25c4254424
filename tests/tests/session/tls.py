"""Scenarios of TLS without a request for it, as libpq has it from version 17 on."""

import ssl


class Direct(Client):
    protocols = ["postgresql"]

    def connect(self):
        context = ssl.create_default_context(cafile=os.environ["PGSSLROOTCERT"])
        context.set_alpn_protocols(self.protocols)
        return context.wrap_socket(super().connect(), server_hostname=self.address[0])


class Other(Direct):
    protocols = ["http/1.1"]


def direct():
    c = Direct()
    show(c.socket.selected_alpn_protocol())
    c.ask(query("SELECT 1"))


def other_protocol():
    try:
        Other()
    except (EOFError, OSError) as error:
        show(type(error).__name__)
