"""Checks a WebSocket server with websocket-client, as it comes: python3 check_websocket_client.py ws://localhost:8080

/echo must send everything back. For wss:// the environment variable CA_FILE names the authority. Prints a line when all
went well; else says why and exits with status 1.
"""

import os
import sys

import websocket

PATIENCE = 60  # seconds for anything that must happen; it says nothing about speed


def main(base):
    ws = websocket.create_connection(base + "/echo", timeout=PATIENCE, sslopt={"ca_certs": os.environ.get("CA_FILE")})
    for size in (0, 1, 125, 126, 4 << 10, 64 << 10, 1 << 20):
        ws.send("a" * size)
        got = ws.recv()
        assert got == "a" * size, f"{size} characters came as {len(got)}"
        ws.send_binary(b"\x00\xff" * (size // 2))
        got = ws.recv()
        assert got == b"\x00\xff" * (size // 2), f"{size} bytes came as {len(got)}"
    ws.ping("in between")
    opcode, data = ws.recv_data(control_frame=True)
    assert (opcode, data) == (websocket.ABNF.OPCODE_PONG, b"in between"), (opcode, data)
    ws.send_close(1000, b"bye")
    opcode, data = ws.recv_data(control_frame=True)
    assert (opcode, data[:2]) == (websocket.ABNF.OPCODE_CLOSE, b"\x03\xe8"), (opcode, data)
    ws.shutdown()
    print(f"ok: websocket-client {websocket.__version__}")


main(sys.argv[1])
