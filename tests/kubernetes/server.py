"""A custom image's server. It shows its secret's hash, and where the file is. Standard library only."""

import hashlib
import http.server
import json


def describe():
    with open("/proc/mounts") as mounts:
        kind = next(line.split()[2] for line in mounts if line.split()[1] == "/secrets")
    with open("/secrets/hf_access_token", "rb") as file:
        return {"sha": hashlib.sha256(file.read()).hexdigest(), "mount": kind}


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        self.respond({"path": self.path})

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.respond(describe())

    def respond(self, value):
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


print("the server starts with", describe(), flush=True)
http.server.ThreadingHTTPServer(("0.0.0.0", 8000), Handler).serve_forever()
