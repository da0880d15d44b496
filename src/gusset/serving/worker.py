"""The child process that runs the model's code: `python -m gusset.serving.worker CHANNEL LISTENING PARENT`.

The arguments are two inherited file descriptors and the parent's process id.
Values come over the channel. Standard output and error are pipes into the
supervisor, which masks them. Knows nothing of vaults.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gusset.errors import GussetError
from gusset.secrets.mapping import Secrets
from gusset.serving import channel
from gusset.serving.model import LazyDataResolver, Pipeline, construct, import_model, load, own_trace
from gusset.serving.process import die_with_parent, harden

FAILED = 9  # the exit status of a worker whose model could not be made ready

log = logging.getLogger("gusset.worker")


def main() -> None:
    control, listening, parent = (int(word) for word in sys.argv[1:])
    die_with_parent(parent)
    for descriptor in (control, listening):
        os.set_inheritable(descriptor, False)  # a child of the model must not hold the port
    supervisor = socket.socket(fileno=control)
    plan = channel.receive(supervisor)
    if plan is None:
        sys.exit(FAILED)
    if not plan["debuggable"]:
        harden()
    _prepare_process(plan)
    Worker(supervisor, socket.socket(fileno=listening), plan).run()


def _prepare_process(plan: Mapping[str, Any]) -> None:
    """The environment as config.yaml wants it, without values, before the model's code is imported."""
    for name in [name for name in os.environ if name.startswith("TRUSS_SECRET_")]:
        del os.environ[name]
    os.environ.update(plan["environment"])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the supervisor's to act on
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LogFormatter(readable=plan["readable_log"]))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    # The directory of this very module is no place for the model's imports.
    sys.path[:] = [place for place in sys.path if place not in ("", os.getcwd())] or sys.path
    sys.argv[:] = [plan["model_file"]]


class LogFormatter(logging.Formatter):
    """A line for people at a terminal, else a JSON object for programs."""

    def __init__(self, *, readable: bool) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
        self._readable = readable

    def format(self, record: logging.LogRecord) -> str:
        if self._readable:
            return super().format(record)
        data = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            data["exc_info"] = self.formatException(record.exc_info)
        return json.dumps(data, ensure_ascii=False)


class Worker:
    """Makes the model ready, then serves it until told to drain."""

    def __init__(self, supervisor: socket.socket, listening: socket.socket, plan: Mapping[str, Any]) -> None:
        self._supervisor = supervisor
        self._listening = listening
        self._plan = plan
        self._model_file = Path(plan["model_file"])
        self._secrets = Secrets(plan["declared"], channel.unpack(plan["values"]))
        self._versions = plan["versions"]
        self._drain: asyncio.Event | None = None
        self._drain_asked = False
        self._loop = _new_loop()

    def run(self) -> None:
        asyncio.set_event_loop(self._loop)
        threading.Thread(target=self._listen, name="gusset-channel", daemon=True).start()
        try:
            pipeline = self._loop.run_until_complete(self._make_ready())
        except GussetError as error:
            self._give_up(f"{error}\n{error.hint or ''}")
        except BaseException as error:  # SystemExit in the model's code is a failed start too
            self._give_up(own_trace(error, self._model_file))
        self._loop.run_until_complete(self._serve(pipeline))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)  # threads of the model must not keep the process

    async def _make_ready(self) -> Pipeline:
        folder, plan = Path(self._plan["folder"]), self._plan
        module = import_model(folder, self._model_file, [Path(path) for path in plan["packages"]])
        offered = {
            "config": plan["config"],
            "data_dir": Path(plan["data_dir"]),
            "secrets": self._secrets,
            "environment": None,
            "lazy_data_resolver": LazyDataResolver(),
        }
        model = construct(module, plan["class_name"], offered)
        pipeline = Pipeline(model, self._model_file)
        await load(model, self._retrying)
        return pipeline

    def _retrying(self, error: BaseException) -> None:
        log.warning("load failed, trying once more\n%s", own_trace(error, self._model_file))

    def _give_up(self, text: str) -> None:
        """The reason is the last thing that is printed."""
        sys.stdout.flush()
        print(text.strip(), file=sys.stderr, flush=True)  # noqa: T201  # the model's own traceback, for its author
        os._exit(FAILED)

    async def _serve(self, pipeline: Pipeline) -> None:
        # Imported here: a model that does not load has no use for them.
        from gusset.serving.endpoints import ModelEndpoints
        from gusset.serving.http import HttpServer
        from gusset.serving.threads import ModelThreads

        concurrency = self._plan["concurrency"]
        self._drain = asyncio.Event()
        if self._drain_asked:
            return
        threads = ModelThreads(self._loop, concurrency)
        endpoints = ModelEndpoints(pipeline, threads, concurrency, self._model_file)
        server = HttpServer(endpoints.handle)
        await server.start(self._listening)
        self._listening.close()
        self._say({"ready": True, "versions": self._versions})
        await self._drain.wait()
        await server.drain()

    def _listen(self) -> None:
        """On a thread of its own, so that a model that blocks the loop still gets new values."""
        while message := channel.receive(self._supervisor):
            if "values" in message:
                self._secrets.replace(channel.unpack(message["values"]))
                self._versions = message["versions"]
                self._say({"versions": self._versions})
            if message.get("drain"):
                self._drain_asked = True
                if self._drain is not None:
                    self._loop.call_soon_threadsafe(self._drain.set)
        os._exit(1)  # the supervisor has gone

    def _say(self, message: Mapping[str, Any]) -> None:
        try:
            channel.send(self._supervisor, message)
        except OSError:
            os._exit(1)


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


if __name__ == "__main__":
    main()
