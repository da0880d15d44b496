#!/usr/bin/env python3
"""Speaks the routes of `vllm serve`, for the test of its example. Standard library only.

Like vLLM it takes the hub's token as `huggingface_hub` finds it, starts a process
for its engine, prints its arguments, and listens only when that process is ready.
"""

import base64
import hashlib
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

HEADERS = 80
METRICS = b"# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running 0.0\n"


def find_token():
    return os.environ.get("HF_TOKEN") or Path(os.environ["HF_TOKEN_PATH"]).read_text().strip()


def engine(pipe):
    """What the process of the engine finds, which gets nothing passed."""
    print("engine with", find_token(), flush=True)  # a careless print: gusset masks it
    time.sleep(1.5)  # load the model
    pipe.send(hashlib.sha256(find_token().encode()).hexdigest())
    signal.pause()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    go_on = threading.Event()  # lets a stream send its second chunk
    found = ""

    def log_message(self, *about):
        pass

    def respond(self, body, kind="application/json", headers=()):
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        if self.path == "/v1/realtime":
            return self.echo_first_message()
        if self.path == "/metrics":
            return self.respond(METRICS, "text/plain; version=0.0.4")
        if self.path == "/v1/models":
            return self.respond(json.dumps({"data": [{"id": sys.argv[2], "token": self.found}]}).encode())
        return self.respond(b"", headers=[("x-path", self.path)])

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if asked.get("stream"):
            return self.stream(asked["max_tokens"])
        if asked.get("go_on"):
            self.go_on.set()
        many = [(f"x-echo-{number}", self.headers[f"x-many-{number}"] or "") for number in range(HEADERS)]
        return self.respond(
            json.dumps({"choices": [{"message": asked["messages"][-1]}]}).encode(), headers=many
        )

    def stream(self, count):
        self.send_response(200)
        self.send_header("content-type", "text/event-stream; charset=utf-8")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for number in range(count):
            if number == 1:
                self.go_on.wait()
            event = (
                b"data: "
                + json.dumps({"choices": [{"delta": {"content": f"{number} " * 100}}]}).encode()
                + b"\n\n"
            )
            self.wfile.write(b"%x\r\n%b\r\n" % (len(event), event))
        self.wfile.write(b"%x\r\n%b\r\n0\r\n\r\n" % (14, b"data: [DONE]\n\n"))

    def echo_first_message(self):
        """A websocket that sends the first message back, if it is short, and closes."""
        key = self.headers["sec-websocket-key"].encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        self.send_response(101)
        self.send_header("upgrade", "websocket")
        self.send_header("connection", "Upgrade")
        self.send_header("sec-websocket-accept", base64.b64encode(hashlib.sha1(key).digest()).decode())
        self.end_headers()
        _, size = self.rfile.read(2)
        mask, masked = self.rfile.read(4), self.rfile.read(size & 127)
        text = bytes(byte ^ mask[at % 4] for at, byte in enumerate(masked))
        self.wfile.write(b"\x81" + bytes([len(text)]) + text + b"\x88\x02\x03\xe8")
        self.close_connection = True


def main():
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    assert sys.argv[1] == "serve", sys.argv
    options = dict(zip(sys.argv[3::2], sys.argv[4::2], strict=True))
    print("non-default args:", options, flush=True)
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    context.Process(target=engine, args=(there,), daemon=True).start()
    Handler.found = here.recv()
    ThreadingHTTPServer((options["--host"], int(options["--port"])), Handler).serve_forever()


if __name__ == "__main__":
    main()
