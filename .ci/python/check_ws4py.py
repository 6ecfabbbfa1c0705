"""Checks a WebSocket server with ws4py, as it comes: python3 check_ws4py.py ws://localhost:8080

/echo must send everything back. For wss:// the environment variable CA_FILE names the authority. Prints a line when all
went well; else says why and exits with status 1.
"""

import os
import queue
import ssl
import sys

import ws4py
from ws4py.client.threadedclient import WebSocketClient

PATIENCE = 60  # seconds for anything that must happen; it says nothing about speed


class Client(WebSocketClient):
    def __init__(self, url):
        options = {"ca_certs": os.environ.get("CA_FILE"), "cert_reqs": ssl.CERT_REQUIRED}
        super().__init__(url, ssl_options=options if url.startswith("wss:") else None)
        self.events = queue.Queue()

    def received_message(self, message):
        self.events.put(message.data)

    def closed(self, code, reason=None):
        self.events.put(code)

    def wants(self, want):
        got = self.events.get(timeout=PATIENCE)
        assert got == want, f"got {got!r:.60}, want {want!r:.60}"


def main(base):
    if base.startswith("wss:") and not hasattr(ssl, "wrap_socket"):
        print("skipped: ws4py has no TLS with this version of Python")
        return
    client = Client(base + "/echo")
    client.daemon = True
    client.connect()
    for size in (0, 1, 125, 126, 4 << 10, 64 << 10, 1 << 20):
        payload = b"a" * size
        client.send(payload)
        client.wants(payload)
        client.send(payload, binary=True)
        client.wants(payload)
    client.close(1000, "bye")
    client.wants(1000)
    print(f"ok: ws4py {ws4py.__version__}")


main(sys.argv[1])
