"""The server in the tests' images, which reports what it sees in its container. Standard library only."""

import base64
import http.server
import json
import os
import signal
import sys
import time

TOKEN = os.environ.get("HF_TOKEN")
if len(sys.argv) > 2 and sys.argv[2] == "from-file":
    with open("/secrets/hf_access_token") as file:
        TOKEN = file.read().strip()
print("started with a token of", len(TOKEN or ""), "characters:", TOKEN, flush=True)


def describe(name):
    path = f"/secrets/{name}"
    about = os.stat(path)
    mount = next(line.split() for line in open("/proc/mounts") if line.split()[1] == "/secrets")
    return {
        "mode": oct(about.st_mode),
        "owner": about.st_uid,
        "me": os.getuid(),
        "type": mount[2],
        "options": mount[3],
        "names": sorted(os.listdir("/secrets")),
        "value": base64.b64encode(open(path, "rb").read()).decode(),
    }


def refused(name):
    """The error on writing a secret's file, and the exit status of another user who reads it (77: refused)."""
    errors = []
    try:
        open(f"/secrets/{name}", "wb")
    except OSError as error:
        errors.append(error.strerror)
    pid = os.fork()
    if pid == 0:
        try:
            os.setuid(12345)
            open(f"/secrets/{name}", "rb").read()
            os._exit(0)
        except OSError:
            os._exit(77)
    errors.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    return errors


def reads(name, count):
    """The distinct values of that many reads."""
    found = set()
    for _ in range(count):
        with open(f"/secrets/{name}", "rb") as file:
            found.add(file.read())
    return sorted(base64.b64encode(each).decode() for each in found)


STATUS = {"/health": 200, "/ready": 200}


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def respond(self, value, status=200):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.respond({"path": self.path}, STATUS.get(self.path, 404))

    def do_POST(self):
        call = json.loads(self.rfile.read(int(self.headers["content-length"])))
        do = call["do"]
        if do == "token":
            self.respond(TOKEN)
        elif do == "describe":
            self.respond(describe(call["name"]))
        elif do == "refused":
            self.respond(refused(call["name"]))
        elif do == "reads":
            self.respond(reads(call["name"], call["count"]))
        elif do == "environment":
            self.respond(dict(os.environ))
        elif do == "file":
            self.respond(open(call["path"]).read())
        elif do == "core":
            import resource

            self.respond(resource.getrlimit(resource.RLIMIT_CORE))
        elif do == "print":
            print(open("/secrets/" + call["name"]).read(), flush=True)
            self.respond("printed")
        elif do == "names":
            self.respond(sorted(os.listdir("/secrets")))
        elif do == "status":
            STATUS[call["path"]] = call["status"]
            self.respond("set")
        elif do == "exit":
            os._exit(call["status"])


if len(sys.argv) > 2 and sys.argv[2] == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
else:
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
if len(sys.argv) > 2 and sys.argv[2] == "never-ready":
    print("thinking about it", flush=True)
    time.sleep(600)
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
