"""The proxy of custom images beside nginx, in front of the same server: python bench/proxy.py [seconds]

Both have one process and keep their connections to the application. wrk loads them, and the application directly.
Needs `nginx` and `wrk` (make system-deps).
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvloop
from measure import table

from gusset.containers.proxy.proxy import Proxy, Routes

ROUNDS = 5
LUA = str(Path(__file__).parent / "load.lua")
RESPONSE = '{"text": "The capital of France is Paris.", "score": 0.98}'
APPLICATION, NGINX, GUSSET = 18_310, 18_311, 18_312
CASES = {
    "small JSON, 1 connection": ("/predict", b'{"text": "The capital of France is [MASK]."}', 1),
    "small JSON, 32 connections": ("/predict", b'{"text": "The capital of France is [MASK]."}', 32),
    "100 KB in, small JSON out, 32 connections": ("/upload", b"x" * 100_000, 32),
    "100 KB out, 32 connections": ("/big", b"", 32),
}
# The application is nginx too, so that it is never what limits. It must read an upload before it answers: nginx as
# a proxy closes its client's connection otherwise.
CONFIG = """
daemon off; worker_processes 1; pid {folder}/pid; error_log stderr crit;
events {{ worker_connections 1024; }}
http {{
  access_log off; client_max_body_size 100m; keepalive_requests 100000000;
  client_body_temp_path {folder}/a; proxy_temp_path {folder}/b; fastcgi_temp_path {folder}/c;
  uwsgi_temp_path {folder}/d; scgi_temp_path {folder}/e;
  {servers}
}}
"""
AS_APPLICATION = """
  client_body_buffer_size 1m;
  server {{ listen 127.0.0.1:{port}; default_type application/json;
    location /upload {{ proxy_pass http://127.0.0.1:{port}/; }}
    location / {{ return 200 '{response}'; }}
    location /big {{ root {folder}; }} }}
"""
AS_PROXY = """
  upstream application {{ server 127.0.0.1:{to}; keepalive 64; keepalive_requests 100000000; }}
  server {{ listen 127.0.0.1:{port};
    proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off; proxy_request_buffering off;
    proxy_buffer_size 64k; proxy_buffers 8 64k;
    location = /predict {{ proxy_pass http://application/infer; }}
    location / {{ proxy_pass http://application; }} }}
"""


def until_open(port: int) -> None:
    while True:
        with socket.socket() as sock:
            if sock.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)


@contextmanager
def nginx(folder: Path, servers: str, port: int) -> Iterator[None]:
    folder.mkdir()
    (folder / "big").write_bytes(b"y" * 100_000)
    folder.chmod(0o755)
    (folder / "nginx.conf").write_text(CONFIG.format(folder=folder, servers=servers))
    process = subprocess.Popen(["nginx", "-c", str(folder / "nginx.conf")])
    try:
        until_open(port)
        yield
    finally:
        process.terminate()
        process.wait()


@contextmanager
def gusset() -> Iterator[None]:
    process = subprocess.Popen([sys.executable, __file__, "serve"])
    try:
        until_open(GUSSET)
        yield
    finally:
        process.terminate()
        process.wait()


async def serve() -> None:
    """The proxy alone, as `gusset serve` runs it."""

    async def connect() -> socket.socket:
        sock = socket.socket()
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", APPLICATION))
        return sock

    proxy = Proxy(connect, Routes("/infer", "/ready", "/alive"), ready=lambda: None)
    await proxy.start(socket.create_server(("127.0.0.1", GUSSET), backlog=1024))
    await asyncio.Event().wait()


def load(port: int, path: str, body: bytes, connections: int, seconds: int) -> dict[str, float]:
    environ = {"KEY": "", **os.environ, "METHOD": "POST" if body else "GET", "BODY": body.decode()}
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "-s", LUA, f"http://127.0.0.1:{port}{path}"]
    done = subprocess.run(command, env=environ, capture_output=True, check=True, text=True)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    assert not figures["errors"], figures
    return figures


def main(seconds: int) -> None:
    ports = {"nginx": NGINX, "gusset": GUSSET, "the application directly": APPLICATION}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        folder.chmod(0o755)
        application = AS_APPLICATION.format(
            port=APPLICATION, response=RESPONSE, folder=folder / "application"
        )
        proxy = AS_PROXY.format(port=NGINX, to=APPLICATION)
        with (
            nginx(folder / "application", application, APPLICATION),
            nginx(folder / "proxy", proxy, NGINX),
            gusset(),
        ):
            for title, (path, body, connections) in CASES.items():
                rounds: dict[str, list[dict[str, float]]] = {name: [] for name in ports}
                for _ in range(ROUNDS):
                    for name, port in ports.items():
                        rounds[name].append(load(port, path, body, connections, seconds))
                rates = {name: [figures["rate"] for figures in done] for name, done in rounds.items()}
                table(title, "requests/s", rates, against="nginx")
                direct = statistics.median(f["p50"] for f in rounds["the application directly"])
                for name in ("nginx", "gusset"):
                    added = statistics.median(f["p50"] for f in rounds[name]) - direct
                    print(f"\nAdded by {name}, p50: {added / 1000:.2f} ms")


if __name__ == "__main__":
    if sys.argv[1:] == ["serve"]:
        uvloop.run(serve())
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 2)
