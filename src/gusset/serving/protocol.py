"""The messages between supervisor and worker.

The supervisor sends orders. They are pickled: a config holds whatever types
YAML has. The worker sends reports. They are JSON and are checked field by
field: the worker shares its process with the model's code, and unpickling
bytes from there could run anything in the supervisor.
"""

from __future__ import annotations

import enum
import io
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any, TypeGuard

import orjson

from gusset.runtime.browser_rules import BrowserRules
from gusset.runtime.caller_auth import CallerDigests
from gusset.runtime.tls import TlsFiles
from gusset.secrets.hits import CHANNELS, Hit
from gusset.secrets.patterns import FORMS
from gusset.serving.channel import Malformed
from gusset.serving.deployment import ModelDeployment

MAX_TIMES = 2**40  # of one hit in one report
MAX_REPORT_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class SetSecrets:
    """The values of all secrets that the model has from now on, and their versions.

    `previous` are the previous values of secrets in an overlap. `callers` are the digests of the
    callers' keys: the worker runs the model's code, and never gets the keys themselves. Empty without
    callers. `number` grows with each set of values that the supervisor reads; `Holds` returns it.
    """

    values: Mapping[str, bytes] = field(repr=False)
    versions: Mapping[str, int | None]
    previous: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    callers: CallerDigests = field(default_factory=dict, repr=False)
    number: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerPlan:
    """The first order: what to serve, with which secrets.

    `shares_port` says that other workers accept connections on the same socket,
    `masks_responses` that results are masked as errors are. `tls` None is plain HTTP.
    """

    deployment: ModelDeployment
    secrets: SetSecrets
    readable_logs: bool
    shares_port: bool
    masks_responses: bool
    browser_rules: BrowserRules | None
    tls: TlsFiles | None = None


@dataclass(frozen=True, slots=True)
class SetSourceError:
    """The last error of the secrets' source, None once it works again. Readiness and metrics show it."""

    error: str | None


@dataclass(frozen=True, slots=True)
class SetLagging:
    """How many workers still use older values of secrets, and since when; None: none. Readiness shows it."""

    text: str | None


@dataclass(frozen=True, slots=True)
class SetMaskedHits:
    """How often values were masked in the output of the deployment, from all workers, for the metrics."""

    total: Mapping[Hit, int]


@dataclass(frozen=True, slots=True)
class Accept:
    """Accept connections: the supervisor no longer accepts them on the deployment's port."""


@dataclass(frozen=True, slots=True)
class Drain:
    """Accept no more connections, finish the requests in flight, then exit."""


@dataclass(frozen=True, slots=True)
class Downloaded:
    """The external data of the deployment is in its folder; with `everything`, all else is there, too."""

    everything: bool


Order = WorkerPlan | SetSecrets | SetSourceError | SetLagging | SetMaskedHits | Downloaded | Accept | Drain


class StartStep(enum.StrEnum):
    """A step of the model's start."""

    IMPORT = "import"
    INIT = "__init__"
    CHECK = "check"
    LOAD = "load"


FAILED_STEPS = {
    StartStep.IMPORT: "the model's code could not be imported",
    StartStep.INIT: "the model's __init__ failed",
    StartStep.CHECK: "the model's class cannot be served",
    StartStep.LOAD: "the model's load failed, twice",
}
"""What a failure of each step is, for people."""

_STEPS = frozenset(StartStep)


@dataclass(frozen=True, slots=True)
class Loading:
    """The model's object exists; `load` is next."""


@dataclass(frozen=True, slots=True)
class Ready:
    """The model has loaded; the worker waits for `Accept`."""


@dataclass(frozen=True, slots=True)
class Failed:
    """A step of the start failed; `trace` is its traceback, not masked."""

    step: StartStep
    trace: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Drained:
    """No request is in flight any more."""


@dataclass(frozen=True, slots=True)
class Masked:
    """What this worker has masked itself since its last report: in logs, responses and metrics."""

    hits: Mapping[Hit, int]


@dataclass(frozen=True, slots=True)
class Holds:
    """Each look-up that begins after this was sent returns a value of that `SetSecrets`, or a newer one."""

    number: int


@dataclass(frozen=True, slots=True)
class Used:
    """The model has looked up these secrets for the first time since the `SetSecrets` of that number."""

    number: int
    names: Sequence[str]


WorkerReport = Loading | Ready | Failed | Drained | Masked | Holds | Used


def _path(text: str) -> Path:
    return Path(text)


class _OrderPickler(pickle.Pickler):
    """Pickles paths as text: Python 3.13 names their class by a module that other versions do not have."""

    def reducer_override(self, obj: Any) -> Any:
        return (_path, (str(obj),)) if isinstance(obj, PurePath) else NotImplemented


def encode_order(order: Order) -> bytes:
    """The order as a message to a worker, whose Python may be another version."""
    message = io.BytesIO()
    _OrderPickler(message, protocol=5).dump(order)
    return message.getvalue()


def decode_order(message: bytes) -> Order:
    """The order in a message from the supervisor, which is trusted."""
    order: Order = pickle.loads(message)  # noqa: S301  # from the parent process
    return order


def encode_report(report: WorkerReport) -> bytes:
    match report:
        case Loading():
            return b'{"event":"loading"}'
        case Ready():
            return b'{"event":"ready"}'
        case Failed(step, trace):
            return orjson.dumps({"event": "failed", "step": step, "trace": trace})
        case Drained():
            return b'{"event":"drained"}'
        case Masked(hits):
            rows = [[hit.secret, hit.form, hit.channel, times] for hit, times in hits.items()]
            return orjson.dumps({"event": "masked", "hits": rows})
        case Holds(number):
            return orjson.dumps({"event": "holds", "number": number})
        case Used(number, names):
            return orjson.dumps({"event": "used", "number": number, "names": list(names)})


def decode_report(message: bytes) -> WorkerReport:
    """The report in a message from a worker, which is not trusted.

    Raises:
        Malformed: it is not a report. The reason quotes nothing of it: it may hold a value.
    """
    try:
        fields = orjson.loads(message)
    except orjson.JSONDecodeError:
        raise Malformed("it is not JSON") from None
    match fields:
        case {"event": "loading"}:
            return Loading()
        case {"event": "ready"}:
            return Ready()
        case {"event": "failed", "step": str(step), "trace": str(trace)} if step in _STEPS:
            return Failed(StartStep(step), trace)
        case {"event": "failed"}:
            raise Malformed("its step or trace is of the wrong type")
        case {"event": "drained"}:
            return Drained()
        case {"event": "masked", "hits": list(rows)}:
            return Masked(dict(map(_hit, rows)))
        case {"event": "holds", "number": int(number)}:
            return Holds(number)
        case {"event": "used", "number": int(number), "names": list(names)} if _are_texts(names):
            return Used(number, names)
        case {"event": "holds" | "used"}:
            raise Malformed("its number or names are of the wrong type")
    raise Malformed("its event is unknown")


def _are_texts(names: list[object]) -> TypeGuard[list[str]]:
    return all(isinstance(name, str) for name in names)


def _hit(row: object) -> tuple[Hit, int]:
    match row:
        case [str(secret), str(form), str(channel), int(times)] if (
            form in FORMS and channel in CHANNELS and 0 < times < MAX_TIMES
        ):
            return Hit(secret, form, channel), times
    raise Malformed("one of its hits is of the wrong type")
