#!/usr/bin/env python3
"""Measures model servers side by side: same model, one core of server, wrk on another.

    python bench/peers.py                          # everything (about 30 minutes)
    python bench/peers.py --only truss,gusset --cases echo --rounds 3 --seconds 1
    python bench/peers.py --extra 'mine=PATH/python -m mine serve {dir} --port {port}'

gusset runs as shipped: limits, time-outs and metrics on, the model in a worker whose
output passes the masker. The peers are installed into environments of their own, under
BENCH_CACHE.

For each case every server is started (one at a time, timed until its first right
response), then wrk rounds go A B C A B C ... so that a disturbance of the machine
falls on all of them alike. Ratios are taken within a round, then the median.
"of limit" divides by the best server of kind limit; "vs truss" by the one named truss.
cpu us/req is the processor time of the server's own process tree per request: it
is the figure that other work on the machine disturbs least. "others" is the share
of a core that everything else on the machine used during a round; a round with much
of it is tried again and the quietest try is kept.

Placeholders in a command: {dir} the model folder (Truss format), {port}, {case},
{secrets} a folder holding one file per secret, {python} the server's own venv,
{apps} the folder of the peers' apps, {cache} BENCH_CACHE. The declared secret,
bench_secret, is also in the environment as TRUSS_SECRET_bench_secret.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import http.client
import json
import os
import random
import re
import shlex
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
CACHE = Path(os.environ.get("BENCH_CACHE") or Path(tempfile.gettempdir()) / "gusset-bench")
SECRET_NAME, SECRET = "bench_secret", "s3cr3t-" + "0123456789abcdef" * 2
TRUSS_PATH = "/v1/models/model:predict"
CASES = ("echo", "secret", "big", "stream")
CHUNK, CHUNKS = b"a small stream chunk\n", 100
TICK = os.sysconf("SC_CLK_TCK")
TRUSS_SPEC = "truss>=0.18,<0.19"


# --------------------------------------------------------------------------- servers


@dataclasses.dataclass
class Server:
    name: str
    kind: str  # peer | limit | extra
    cmd: str
    reqs: tuple[str, ...] = ()
    path: str = "/predict"
    env: dict = dataclasses.field(default_factory=dict)
    cases: tuple[str, ...] = CASES
    layout: str = "folder"  # folder: a Truss folder; truss: what Truss's image holds
    asynchronous: bool = False  # an async predict, and room for many at once


UVICORN = "{python} -m uvicorn --app-dir {apps} --host 127.0.0.1 --port {port}"
UVICORN_BARE = UVICORN + " --loop uvloop --lifespan off --no-access-log --log-level warning"
GRANIAN = (
    "{python} -m granian --working-dir {apps} --host 127.0.0.1 --port {port} --workers 1 "
    "--http 1 --no-ws --loop uvloop --log-level warning"
)
LIMIT_REQS = ("uvicorn", "httptools", "uvloop", "granian", "orjson", "msgspec", "zttp")
TRUSS_MOUNT = (
    "{python} -c 'import runpy, _truss_shared.secrets_resolver as s; "
    's.SecretsResolver.SECRETS_MOUNT_DIR = "{secrets}"; '
    'runpy.run_path("main.py", run_name="__main__")\''
)

GUSSET = f"{Path(sys.executable).parent / 'gusset'} serve {{dir}} --port {{port}} --secrets-dir {{secrets}}"

SERVERS = [
    Server("truss", "peer", "{python} main.py", ("<truss server>",), TRUSS_PATH, layout="truss"),
    Server(
        "truss-mount", "peer", TRUSS_MOUNT, ("<truss server>",), TRUSS_PATH, cases=("secret",), layout="truss"
    ),
    Server(
        "truss-async",
        "peer",
        "{python} main.py",
        ("<truss server>",),
        TRUSS_PATH,
        layout="truss",
        asynchronous=True,
    ),
    Server("gusset", "peer", GUSSET, (), TRUSS_PATH),
    Server("gusset-async", "peer", GUSSET, (), TRUSS_PATH, asynchronous=True),
    Server("litserve", "peer", "{python} {apps}/peer_litserve.py {port}", ("litserve",)),
    Server(
        "bentoml",
        "peer",
        "{python} -m bentoml serve peer_bentoml:Bench --working-dir {apps} --host 127.0.0.1 --port {port}",
        ("bentoml>=1.4,<1.5",),
        env={"BENTOML_DO_NOT_TRACK": "True", "BENTOML_HOME": "{work}"},
    ),
    Server("fastapi", "peer", UVICORN + " peer_fastapi:app", ("fastapi", "uvicorn[standard]", "orjson")),
    Server(
        "fastapi-tuned",
        "peer",
        UVICORN + " --no-access-log peer_fastapi:app",
        ("fastapi", "uvicorn[standard]", "orjson"),
        env={"BENCH_TUNED": "1"},
    ),
    Server("uvicorn-h11", "limit", UVICORN_BARE + " --http h11 limit_asgi:app", LIMIT_REQS),
    Server("uvicorn", "limit", UVICORN_BARE + " --http httptools limit_asgi:app", LIMIT_REQS),
    Server(
        "uvicorn-thread",
        "limit",
        UVICORN_BARE + " --http httptools limit_asgi:app",
        LIMIT_REQS,
        env={"BENCH_THREAD": "1"},
    ),
    Server("uvicorn-zttp", "limit", UVICORN_BARE + " --http zttp limit_asgi:app", LIMIT_REQS),
    Server("granian-asgi", "limit", GRANIAN + " --interface asginl limit_asgi:app", LIMIT_REQS),
    Server("granian-rsgi", "limit", GRANIAN + " --interface rsgi limit_rsgi:app", LIMIT_REQS),
    Server("protocol", "limit", "{python} {apps}/limit_protocol.py {port}", LIMIT_REQS),
    Server(
        "protocol-thread",
        "limit",
        "{python} {apps}/limit_protocol.py {port}",
        LIMIT_REQS,
        env={"BENCH_THREAD": "1"},
    ),
]


# --------------------------------------------------------------------------- venvs


def run_quiet(*argv, **kw):
    done = subprocess.run(argv, capture_output=True, text=True, **kw)
    if done.returncode:
        raise SystemExit(f"failed: {' '.join(map(str, argv))}\n{(done.stdout + done.stderr)[-3000:]}")
    return done.stdout


def venv(reqs: tuple[str, ...], extra: tuple[str, ...] = ()) -> Path:
    """The python of a cached venv holding reqs; the key is their text, and which Python runs this."""
    text = "\n".join((*reqs, *extra, sys.base_prefix, sys.version))
    key = hashlib.sha256(text.encode()).hexdigest()[:10]
    name = re.sub(r"[^a-z0-9]+", "-", reqs[0].lower()).strip("-")[:24]
    root = CACHE / "venvs" / f"{name}-{key}"
    python = root / "bin" / "python"
    if not (root / ".done").exists():
        print(f"preparing {root.name}", file=sys.stderr, flush=True)
        shutil.rmtree(root, ignore_errors=True)
        run_quiet(sys.executable, "-m", "venv", str(root))
        run_quiet(str(python), "-m", "pip", "install", "-q", *reqs, *extra)
        (root / ".done").touch()
    return python


def truss_templates() -> tuple[Path, Path]:
    """(python that has the truss package, its templates folder)."""
    python = venv((TRUSS_SPEC,))
    out = run_quiet(
        str(python),
        "-c",
        "import importlib.util as u; print(u.find_spec('truss').submodule_search_locations[0])",
    )
    return python, Path(out.strip()) / "templates"


def truss_server_python() -> Path:
    """What Truss's image holds: templates/server/requirements.txt under its constraints."""
    _, templates = truss_templates()
    text = (templates / "server" / "requirements.txt").read_text()
    reqs = tuple(
        line.split("#")[0].strip()
        for line in text.splitlines()
        if line.strip() and not line.lstrip().startswith(("#", "-"))
    )
    return venv(reqs, ("-c", str(templates / "server" / "constraints.txt")))


def python_for(server: Server) -> Path:
    if server.reqs == ("<truss server>",):
        return truss_server_python()
    return venv(server.reqs) if server.reqs else Path(sys.executable)


# --------------------------------------------------------------------------- models


def model_source(case: str, asynchronous: bool) -> str:
    a, sleep = ("async ", "await asyncio.sleep") if asynchronous else ("", "time.sleep")
    body = {
        "echo": "        return model_input\n",
        "big": "        return model_input\n",
        "secret": f'        return {{"length": len(self._secrets["{SECRET_NAME}"])}}\n',
        "stream": f"        for n in range({CHUNKS}):\n            yield {CHUNK!r}\n"
        f"            if n == 0 and model_input.get('pause'):\n                {sleep}(model_input['pause'])\n",
    }[case]
    return (
        "import asyncio\nimport time\n\n\nclass Model:\n"
        "    def __init__(self, **kwargs):\n"
        '        self._secrets = kwargs["secrets"]\n\n'
        "    def load(self):\n        pass\n\n"
        f"    {a}def predict(self, model_input):\n{body}"
    )


def make_folder(server: Server, case: str, work: Path) -> Path:
    config = f"model_name: bench\nsecrets:\n  {SECRET_NAME}: null\n"
    if server.asynchronous:
        config += "runtime:\n  predict_concurrency: 64\n"
    folder = work / "app"
    if server.layout == "truss":
        python, templates = truss_templates()
        shutil.copytree(templates / "server", folder)
        shutil.copytree(templates / "shared", folder / "_truss_shared")
        source = work / "source.yaml"
        source.write_text(config)
        config = run_quiet(  # the image builder writes the config out with every default
            str(python),
            "-c",
            "import sys, yaml, pathlib; from truss.base.truss_config import TrussConfig as C; "
            "print(yaml.dump(C.from_yaml(pathlib.Path(sys.argv[1])).to_dict(verbose=True)))",
            str(source),
        )
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "__init__.py").touch()
    (folder / "model" / "model.py").write_text(model_source(case, server.asynchronous))
    (folder / "config.yaml").write_text(config)
    (work / "secrets").mkdir()
    (work / "secrets" / SECRET_NAME).write_text(SECRET)
    return folder


def bodies() -> dict[str, bytes]:
    rng = random.Random(7)
    small = b'{"prompt": "what is a gusset?", "max_tokens": 64}'
    values, size = [], 0
    while size < 100_000:
        values.append(rng.random())
        size += len(repr(values[-1])) + 2
    return {"echo": small, "secret": small, "stream": small, "big": json.dumps({"values": values}).encode()}


def right(case: str, body: bytes, response: bytes) -> bool:
    try:
        if case == "stream":
            return response.count(CHUNK.strip()) == CHUNKS
        want = {"length": len(SECRET)} if case == "secret" else json.loads(body)
        return json.loads(response) == want
    except ValueError:
        return False


# --------------------------------------------------------------------------- processes


def stat_of(pid: int):
    """(parent, ticks used, start time) or None."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (OSError, IndexError):
        return None
    return int(fields[1]), int(fields[11]) + int(fields[12]), int(fields[19])


def tree(root: int) -> dict[int, int]:
    """pid -> start time of root and all its descendants."""
    stats = {int(p.name): stat_of(int(p.name)) for p in Path("/proc").iterdir() if p.name.isdigit()}
    found, grew = {root}, True
    while grew:
        more = {pid for pid, s in stats.items() if s and s[0] in found} - found
        found |= more
        grew = bool(more)
    return {pid: stats[pid][2] for pid in found if stats.get(pid)}


def memory_mb(root: int) -> tuple[float, float]:
    """(sum of RSS, sum of PSS: shared pages counted once) of the tree, in MB."""
    rss = pss = 0
    for pid in tree(root):
        try:
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Rss:"):
                    rss += int(line.split()[1])
                elif line.startswith("Pss:"):
                    pss += int(line.split()[1])
        except OSError:
            pass
    return rss / 1024, pss / 1024


def cpu_seconds(root: int) -> float:
    return sum(s[1] for s in map(stat_of, tree(root)) if s) / TICK


def machine_busy() -> float:
    """Seconds all processors were busy since boot."""
    f = list(map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]))
    return (sum(f) - f[3] - f[4]) / TICK


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def post(port: int, path: str, body: bytes) -> tuple[int, bytes]:
    conn = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        conn.request("POST", path, body, {"Content-Type": "application/json"})
        response = conn.getresponse()
        return response.status, response.read()
    finally:
        conn.close()


def first_chunk_s(port: int, path: str, pause: float) -> float:
    """Seconds to the first bytes of a stream whose model pauses after its first chunk."""
    conn = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        began = time.perf_counter()
        conn.request(
            "POST", path, json.dumps({"pause": pause}).encode(), {"Content-Type": "application/json"}
        )
        response = conn.getresponse()
        response.read1(len(CHUNK))
        took = time.perf_counter() - began
        response.read()
        return took
    finally:
        conn.close()


@dataclasses.dataclass
class Running:
    server: Server
    proc: subprocess.Popen
    port: int
    work: Path
    ready_s: float
    rss: float
    pss: float

    def stop(self):
        mine = tree(self.proc.pid)
        self.proc.terminate()
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline and any((s := stat_of(p)) and s[2] == t for p, t in mine.items()):
            self.proc.poll()
            time.sleep(0.05)
        for pid, started in mine.items():
            now = stat_of(pid)
            if now and now[2] == started:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self.proc.wait()
        shutil.rmtree(self.work, ignore_errors=True)


def start(server: Server, case: str, body: bytes, core: int | None, limit_s: float = 60) -> Running:
    python = python_for(server)
    work = Path(tempfile.mkdtemp(prefix=f"{server.name}-", dir=CACHE))
    folder, port = make_folder(server, case, work), free_port()
    places = {
        "{dir}": str(folder),
        "{port}": str(port),
        "{case}": case,
        "{secrets}": str(work / "secrets"),
        "{python}": str(python),
        "{apps}": str(HERE / "peers"),
        "{cache}": str(CACHE),
        "{work}": str(work),
    }

    def fill(text: str) -> str:
        for key, value in places.items():
            text = text.replace(key, value)
        return text

    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}
    env |= {
        "HOME": str(work),
        "BENCH_CASE": case,
        "INFERENCE_SERVER_PORT": str(port),
        f"TRUSS_SECRET_{SECRET_NAME}": SECRET,
        "PYTHONUNBUFFERED": "True",
        "PYTHONPYCACHEPREFIX": str(CACHE / "pycache"),
    }
    env |= {k: fill(v) for k, v in server.env.items()}
    pin = (lambda: os.sched_setaffinity(0, {core})) if core is not None else None
    argv = [fill(part) for part in shlex.split(server.cmd)]
    with open(work / "log", "wb") as log:
        began = time.perf_counter()
        proc = subprocess.Popen(
            argv, cwd=folder, env=env, stdout=log, stderr=log, stdin=subprocess.DEVNULL, preexec_fn=pin
        )
    run = Running(server, proc, port, work, 0.0, 0.0, 0.0)
    last = None
    while time.perf_counter() - began < limit_s and proc.poll() is None:
        try:
            last = post(port, server.path, body)
            if last[0] == 200 and right(case, body, last[1]):
                run.ready_s = time.perf_counter() - began
                time.sleep(0.3)
                run.rss, run.pss = memory_mb(proc.pid)
                return run
        except (OSError, http.client.HTTPException):
            pass
        time.sleep(0.01)
    tail = (work / "log").read_text(errors="replace")[-1500:]
    run.stop()
    raise RuntimeError(f"{server.name}/{case} gave no right response: last={str(last)[:300]}\n{tail}")


# --------------------------------------------------------------------------- load

LUA = """
local f = io.open(os.getenv("BENCH_BODY"), "rb")
wrk.method = "POST"
wrk.body = f:read("*a")
f:close()
wrk.headers["Content-Type"] = "application/json"
function done(s, latency, requests)
  local e = s.errors
  print(string.format("BENCH %d %d %d %d %d", s.requests, s.duration,
    latency:percentile(50), latency:percentile(99), e.connect + e.read + e.write + e.status + e.timeout))
end
"""


def load(run: Running, body_file: Path, lua: Path, conc: int, seconds: float, core: int | None) -> dict:
    pin = (lambda: os.sched_setaffinity(0, {core})) if core is not None else None
    url = f"http://127.0.0.1:{run.port}{run.server.path}"
    before, busy, began = cpu_seconds(run.proc.pid), machine_busy(), time.perf_counter()
    kids = os.times()
    done = subprocess.run(
        ["wrk", "-t1", f"-c{conc}", f"-d{seconds}s", "-s", str(lua), url],
        env=os.environ | {"BENCH_BODY": str(body_file)},
        capture_output=True,
        text=True,
        timeout=seconds + 60,
        preexec_fn=pin,
    )
    used, kids2 = cpu_seconds(run.proc.pid) - before, os.times()
    wrk = kids2.children_user + kids2.children_system - kids.children_user - kids.children_system
    others = (machine_busy() - busy - used - wrk) / (time.perf_counter() - began)
    found = re.search(r"BENCH (\d+) (\d+) (\d+) (\d+) (\d+)", done.stdout)
    if not found:
        raise RuntimeError(f"wrk failed: {done.stdout} {done.stderr}")
    n, us, p50, p99, bad = map(int, found.groups())
    if not n:
        raise RuntimeError("no response at all in a round")
    return {
        "rps": n / (us / 1e6),
        "p50": p50,
        "p99": p99,
        "bad": bad,
        "cpu": used * 1e6 / n,
        "others": others,
    }


def wait_for_quiet(most_s: float, quiet: float):
    """Sleeps while others are busy, for most_s at the longest."""
    deadline = time.monotonic() + most_s
    while time.monotonic() < deadline:
        busy, began = machine_busy(), time.perf_counter()
        time.sleep(0.2)
        if (machine_busy() - busy) / (time.perf_counter() - began) < quiet:
            return
        time.sleep(0.8)


# --------------------------------------------------------------------------- report


def middle(values):
    return statistics.median(values) if values else float("nan")


def ms(us: float) -> str:
    return f"{us / 1000:.2f}"


def table(
    case: str, conc: int, rounds: dict[str, list[dict]], info: dict[str, dict], kinds: dict[str, str]
) -> str:
    rps = {name: [r["rps"] for r in rs] for name, rs in rounds.items() if rs}
    limits = [n for n in rps if kinds[n] == "limit"]
    top = max(limits, key=lambda n: middle(rps[n]), default=None)
    lines = [
        f"\n### {case}, {conc} connection{'s' if conc > 1 else ''}"
        + (f" (limit: {top})" if top else "")
        + "\n",
        "| server | requests/s | min-max | of limit | vs truss | p50 ms | p99 ms | cpu us/req | cpu: of limit | cpu: vs truss "
        "| RSS (PSS) MB | ready s | bad | others |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]

    def ratio(name, base):
        if base not in rps:
            return "-"
        return f"{middle([a / b for a, b in zip(rps[name], rps[base], strict=False) if b]):.3g}"

    cpu = {name: middle([r["cpu"] for r in rs]) for name, rs in rounds.items() if rs}
    least = min((n for n in limits if cpu[n]), key=lambda n: cpu[n], default=None)

    def cpu_ratio(name, base):
        if base not in rps:
            return "-"
        return f"{middle([b['cpu'] / a['cpu'] for a, b in zip(rounds[name], rounds[base], strict=False) if a['cpu']]):.3g}"

    for name, values in rps.items():
        rs, i = rounds[name], info[name]
        lines.append(
            f"| {name} | {middle(values):,.0f} | {min(values):,.0f}-{max(values):,.0f} | {ratio(name, top)} "
            f"| {ratio(name, 'truss')} | {ms(middle([r['p50'] for r in rs]))} | {ms(middle([r['p99'] for r in rs]))} "
            f"| {cpu[name]:.0f} | {cpu_ratio(name, least)} | {cpu_ratio(name, 'truss')} | {i['rss']:.0f} ({i['pss']:.0f}) | {i['ready_s']:.2f} "
            f"| {sum(r['bad'] for r in rs)} | {middle([r['others'] for r in rs]):.2f} |"
        )
    return "\n".join(lines)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--only", help="comma-separated names of servers (extras always run)")
    p.add_argument("--skip", default="", help="comma-separated names to leave out")
    p.add_argument("--cases", default=",".join(CASES))
    p.add_argument("--conc", default="1,32")
    p.add_argument("--rounds", type=int, default=7)
    p.add_argument("--seconds", type=int, default=2)
    p.add_argument(
        "--quiet", type=float, default=0.1, help="a round in which others used more of a core is retried"
    )
    p.add_argument("--retries", type=int, default=2)
    p.add_argument(
        "--patience",
        type=float,
        default=5,
        help="seconds to wait, before a round, for the machine to be quiet",
    )
    p.add_argument("--starts", type=int, default=3, help="times each server is started, for start-to-ready")
    p.add_argument(
        "--extra",
        action="append",
        default=[],
        metavar="NAME=COMMAND",
        help="e.g. 'ours=COMMAND {dir} {port}'",
    )
    p.add_argument(
        "--extra-path", action="append", default=[], metavar="NAME=/path", help=f"default {TRUSS_PATH}"
    )
    p.add_argument("--no-pin", action="store_true", help="do not give server and wrk a core each")
    p.add_argument("--json", type=Path, help="write all rounds here")
    args = p.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the servers are stopped
    CACHE.mkdir(parents=True, exist_ok=True)

    paths = dict(item.split("=", 1) for item in args.extra_path)
    servers = [s for s in SERVERS if not args.only or s.name in args.only.split(",")]
    for item in args.extra:
        name, cmd = item.split("=", 1)
        servers.append(Server(name, "extra", cmd, path=paths.get(name, TRUSS_PATH)))
    servers = [s for s in servers if s.name not in args.skip.split(",")]
    kinds = {s.name: s.kind for s in servers}
    for server in servers:
        python_for(server)
    pinned = not args.no_pin and len(os.sched_getaffinity(0)) > 1
    cores = sorted(os.sched_getaffinity(0))[:2] if pinned else [None, None]
    all_rounds, all_info, idle = {}, {}, {}
    scratch = Path(tempfile.mkdtemp(prefix="load-", dir=CACHE))
    lua = scratch / "post.lua"
    lua.write_text(LUA)
    try:
        for case in args.cases.split(","):
            body = bodies()[case]
            body_file = scratch / f"{case}.json"
            body_file.write_bytes(body)
            live: dict[str, Running] = {}
            try:
                info = {}
                for server in servers:
                    if case not in server.cases:
                        continue
                    try:
                        runs = []
                        for n in range(args.starts):
                            runs.append(start(server, case, body, cores[0]))
                            if n + 1 < args.starts:
                                runs[-1].stop()
                    except RuntimeError as e:
                        print(f"left out: {e}", file=sys.stderr, flush=True)
                        continue
                    live[server.name] = runs[-1]
                    info[server.name] = {
                        "ready_s": middle([r.ready_s for r in runs]),
                        "rss": runs[-1].rss,
                        "pss": runs[-1].pss,
                        "starts": [r.ready_s for r in runs],
                    }
                for name, run in live.items():  # how much each uses while idle
                    before = cpu_seconds(run.proc.pid)
                    time.sleep(0.5)
                    idle[f"{case}/{name}"] = (cpu_seconds(run.proc.pid) - before) / 0.5
                all_info[case] = info
                if case == "stream":  # is a chunk sent when the model gives it?
                    late = [n for n, r in live.items() if first_chunk_s(r.port, r.server.path, 0.5) > 0.4]
                    print(
                        f"\nstream: the first chunk waits for later ones in: {', '.join(late) or 'none'}",
                        flush=True,
                    )
                for run in live.values():
                    load(run, body_file, lua, 8, 1, cores[1])
                for conc in map(int, args.conc.split(",")):
                    rounds = {name: [] for name in live}
                    for _ in range(args.rounds):
                        for name, run in live.items():
                            try:
                                tries = []
                                while len(tries) <= args.retries:
                                    wait_for_quiet(args.patience, 0.3)
                                    tries.append(load(run, body_file, lua, conc, args.seconds, cores[1]))
                                    if tries[-1]["others"] < args.quiet:
                                        break
                                rounds[name].append(min(tries, key=lambda r: r["others"]))
                            except RuntimeError as e:
                                print(f"{name}/{case}: {e}", file=sys.stderr, flush=True)
                    for name, run in live.items():
                        try:
                            status, response = post(run.port, run.server.path, body)
                        except (OSError, http.client.HTTPException) as e:
                            status, response = 0, repr(e).encode()
                        if status != 200 or not right(case, body, response):
                            print(
                                f"{name}/{case}: wrong after the rounds: {status} {response[:200]}",
                                file=sys.stderr,
                            )
                    all_rounds[f"{case}/{conc}"] = rounds
                    print(table(case, conc, rounds, info, kinds), flush=True)
            finally:
                for run in live.values():
                    run.stop()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        if args.json:
            args.json.write_text(json.dumps({"rounds": all_rounds, "info": all_info, "idle": idle}, indent=1))
    busy = {k: round(v, 3) for k, v in idle.items() if v >= 0.01}
    print(f"\nprocessor used while idle (share of a core, 0.01 and up): {busy or 'none'}")


if __name__ == "__main__":
    main()
