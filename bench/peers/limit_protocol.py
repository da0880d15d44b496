"""A hand-written asyncio.Protocol on uvloop + httptools: the floor for Python HTTP.

It does only what the benchmark needs (no limits, no timeouts, no back-pressure),
so it is a limit and not a server. BENCH_THREAD=1 runs predict in a worker thread.
"""

import asyncio
import os
import sys
import threading
from collections import deque

import httptools
import orjson
import uvloop
from common import CASE, predict

THREAD = os.environ.get("BENCH_THREAD") == "1"
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: application/octet-stream\r\ntransfer-encoding: chunked\r\n\r\n"
)


class Worker:
    """One model thread. Responses go back in batches, with one loop wake-up a batch."""

    def __init__(self, loop):
        self.loop = loop
        self.jobs, self.out = deque(), deque()
        self.wake = threading.Semaphore(0)
        self.scheduled = False
        threading.Thread(target=self.run, daemon=True).start()

    def put(self, proto, body):
        self.jobs.append((proto, body))
        self.wake.release()

    def emit(self, transport, data):
        self.out.append((transport, data))
        if not self.scheduled:
            self.scheduled = True
            self.loop.call_soon_threadsafe(self.flush)

    def flush(self):
        self.scheduled = False
        out = self.out
        while out:  # whatever is ready for one connection goes out as one write
            transport, data = out.popleft()
            if out and out[0][0] is transport:
                parts = [data]
                while out and out[0][0] is transport:
                    parts.append(out.popleft()[1])
                data = b"".join(parts)
            if not transport.is_closing():  # a write to a closed one raises
                transport.write(data)

    def run(self):
        while True:
            self.wake.acquire()
            proto, body = self.jobs.popleft()
            respond(body, lambda data, t=proto.transport: self.emit(t, data))


def respond(body, write):
    result = predict(orjson.loads(body))
    if CASE == "stream":
        write(STREAM_HEAD)
        for chunk in result:
            write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
        write(b"0\r\n\r\n")
        return
    out = orjson.dumps(result)
    write(HEAD % len(out) + out)


class Http(asyncio.Protocol):
    worker = None

    def connection_made(self, transport):
        self.transport = transport
        self.parser = httptools.HttpRequestParser(self)
        self.parts = []

    def data_received(self, data):
        self.parser.feed_data(data)

    def on_body(self, data):
        self.parts.append(data)

    def on_message_complete(self):
        body, self.parts = b"".join(self.parts), []
        if self.worker:
            self.worker.put(self, body)
        else:
            respond(body, self.transport.write)


async def main(port):
    loop = asyncio.get_running_loop()
    if THREAD:
        Http.worker = Worker(loop)
    server = await loop.create_server(Http, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
