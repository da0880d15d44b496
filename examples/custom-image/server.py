"""A server as there are many: it knows nothing of gusset, and wants a key. Standard library only.

Signs what it is sent, with the key in the variable SIGNING_KEY or with that in the file of --key-file.
"""

import argparse
import hashlib
import hmac
import json
import os
import signal
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("--port", type=int, default=8000)
parser.add_argument("--key-file")
options = parser.parse_args()


def key() -> bytes:
    """The key; from a file it is read anew each time, so that a new one counts at once."""
    if options.key_file:
        return Path(options.key_file).read_bytes().strip()
    return os.environ["SIGNING_KEY"].encode()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def respond(self, status: int, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self.respond(200, {"ready": bool(key())})

    def do_POST(self) -> None:
        text = self.rfile.read(int(self.headers["content-length"]))
        self.respond(200, {"signature": hmac.new(key(), text, hashlib.sha256).hexdigest()})

    def log_message(self, *about: object) -> None:
        """Nothing for each request."""


# The first process of a container gets no SIGTERM that it does not ask for.
signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
print("signing with", key().decode(), flush=True)  # a mistake that people make: gusset masks it
ThreadingHTTPServer(("127.0.0.1", options.port), Handler).serve_forever()
