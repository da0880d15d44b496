"""A provider's program with faults, for tests. Its credentials are in a JSON file.

`FAULTS` is a list of `STEP:FAULT`; each happens once, so that the next run succeeds.
"""

import base64
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path

WORDS = "horse staple battery"  # no part of it looks random

state_file = Path(os.environ["PROVIDER"])
state = json.loads(state_file.read_text())
request = json.load(sys.stdin)
step = request["step"]


def save() -> None:
    state_file.with_suffix(".new").write_text(json.dumps(state))
    state_file.with_suffix(".new").rename(state_file)


def has_fault(fault: str) -> bool:
    name = f"{step}:{fault}"
    if name not in os.environ.get("FAULTS", "").split() or name in state["happened"]:
        return False
    state["happened"].append(name)
    save()
    return True


def kill_gusset() -> None:
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(30)


def complain(value: str) -> None:
    """Print the value, as a client's error message may, and fail in one of the ways to fail."""
    text = f"login with {value} failed"
    if has_fault("print-and-fail"):
        sys.exit(text)
    if has_fault("print-in-long-line"):  # whose last 64 KiB begin within the value
        end = "\nlogin failed\n"
        sys.stderr.write(value + "x" * (64 * 1024 + 1 - len(value) - len(end)) + end)
    if has_fault("print-and-later"):
        print(text, file=sys.stderr)
        sys.exit(75)
    if has_fault("print-and-hang"):
        print(text, file=sys.stderr, flush=True)
        time.sleep(60)


call = {name: text for name, text in request.items() if name != "value"}
state["calls"].append(call | {"pid": os.getpid()})
save()
if has_fault("kill-before"):
    kill_gusset()
if has_fault("fail"):
    sys.exit("this failed")
if has_fault("signal"):
    os.kill(os.getpid(), signal.SIGTERM)
if has_fault("later"):
    print("this failed for now", file=sys.stderr)
    sys.exit(75)
if has_fault("hang"):
    time.sleep(60)
if has_fault("background"):
    subprocess.Popen(["sleep", "60"])
if has_fault("large"):
    os.write(1, b"x" * 1_000_000)
if has_fault("not-mine"):
    sys.exit(64)
output = {}
if step == "create":
    handle = "key-" + request["rotation"]
    made = WORDS if has_fault("words") else secrets.token_urlsafe(24)
    output = {"value": state["live"].setdefault(handle, made), "handle": handle}
    if has_fault("print"):
        print("the value is", output["value"], "in", repr(output), file=sys.stderr)
    if has_fault("output"):  # though it will fail
        print(json.dumps(output), flush=True)
    if has_fault("base64"):
        encoded = base64.b64encode(output["value"].encode()).decode()
        print(json.dumps({"value_base64": encoded, "handle": handle}), flush=True)
    complain(output["value"])
    if has_fault("rubbish"):
        print(json.dumps(output)[:-2])
        print("error: near", output["value"], file=sys.stderr)
        save()
        sys.exit()
elif step == "verify":
    if state["live"].get(request["handle"]) != request["value"]:
        sys.exit("the value is not the one that was made")
    complain(request["value"])
elif step == "revoke":
    complain(state["live"][request["current"]])
    state["live"].pop(request["handle"], None)
save()
if has_fault("kill-after"):
    kill_gusset()
print(json.dumps(output))
