"""Builds an image, and searches it for the values that the build was given before anything else uses it."""

from __future__ import annotations

import collections
import hashlib
import hmac
import logging
import subprocess
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from gusset.containers.build.build_cache import BuildCache
from gusset.containers.build.build_command import BuildTool
from gusset.containers.build.build_plan import BuildPlan
from gusset.containers.build.context import write_context
from gusset.containers.engine.container import Notify
from gusset.containers.engine.engine import Engine
from gusset.containers.engine.run_id import run_has_ended, run_id
from gusset.containers.engine.working_containers import remove_working_containers
from gusset.containers.reaper import end_group
from gusset.containers.secrets.memory_folder import ContainerFolder
from gusset.errors import CheckFailed, HostError, ImageUnreadable, ModelFailed
from gusset.images.report import Report
from gusset.images.scan import Wanted, scan_image
from gusset.images.sources import ImageSource
from gusset.images.value_search import ValueSearch
from gusset.secrets.masking import Masker
from gusset.secrets.value import SecretValue

log = logging.getLogger("gusset")

_LAST_LINES = 20

# Podman looks through all images for one to build on, and fails if another process removes one meanwhile.
_ATTEMPTS = 3
_REMOVED_MEANWHILE = "layer not known"


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildValues:
    """The values that a build is given, by the names of their secrets.

    `key` makes a digest of them that tells nothing about them. The secrets `allowed` may be in the image.
    """

    values: Mapping[str, SecretValue] = field(default_factory=dict, repr=False)
    key: bytes = field(default=b"", repr=False)
    allowed: Collection[str] = ()

    def digest(self) -> str:
        """A text that changes with a value, for the engine's cache."""
        made = hmac.new(self.key, digestmod=hashlib.sha256)
        for name, value in sorted(self.values.items()):
            data = value.reveal()
            made.update(f"{name}\0{len(data)}\0".encode() + data)
        return made.hexdigest()[:24]


def local_name(folder: Path) -> str:
    """A name for the image of a folder, different for each. Pruning spares images with a name."""
    path = folder.resolve()
    plain = "".join(c if c.isascii() and c.isalnum() else "-" for c in path.name.lower()).strip("-")
    return f"localhost/gusset-{plain or 'model'}-{hashlib.sha256(bytes(path)).hexdigest()[:12]}:latest"


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltImage:
    """An image that was built, and the report of its scan; None if the build had no value to search for."""

    id: str
    report: Report | None = None


def build(
    engine: Engine,
    plan: BuildPlan,
    given: BuildValues,
    *,
    masker: Masker,
    on_line: Callable[[str], object] = lambda line: log.info("build: %s", line),
    notify: Notify = lambda kind, text: None,
) -> BuiltImage:
    """Build the plan, whose base image the engine already has. The image gets no name.

    The engine's cache makes this quick if nothing has changed. Each line of the build's output goes to
    `on_line` without values. If the build fails, or its image has a value, what it made is removed; the
    reaper behind `notify` does that if gusset is killed.

    Raises:
        HostError: the engine's command is missing or too old, a folder cannot be copied, or a disk is full.
        ConfigInvalid: a secret is no pip.conf.
        ModelFailed: the build fails; the message has its last lines.
        CheckFailed: the image contains values; `problems` say where.
        ImageUnreadable: the image cannot be searched as a whole.
    """
    tool = BuildTool.find(engine)
    tool.check(plan)
    masker.learn(given.values.values())
    if plan.secrets and tool.working_containers:
        remove_working_containers(tool.working_containers, run_has_ended)  # of builds that were killed
        notify("containers", str(tool.working_containers))
    cache = BuildCache(engine, on_image=lambda id: notify("image", id) if plan.secrets else None)
    image = None
    try:
        image = _run(tool, plan, given, _Lines(masker, cache, on_line), notify)
        # The name comes from the config, which may contain a value.
        report = _scan(engine, image, f"the image of {masker.mask_text(plan.name)}", given)
        notify("built", "")
        return BuiltImage(id=image, report=report)
    except BaseException:
        if plan.secrets and tool.working_containers:
            remove_working_containers(tool.working_containers, lambda name: name == run_id())
        if plan.secrets or image:
            cache.remove(image)
        notify("built", "")
        raise


class _Lines:
    """Passes on the lines of a build without values, and keeps the last ones."""

    def __init__(self, masker: Masker, cache: BuildCache, on_line: Callable[[str], object]) -> None:
        self._masker = masker
        self._cache = cache
        self._on_line = on_line
        self.last = collections.deque[str](maxlen=_LAST_LINES)

    def add(self, line: str) -> None:
        self._cache.read_line(line)
        self.last.append(self._masker.mask_text(line.rstrip()))
        self._on_line(self.last[-1])


def _run(tool: BuildTool, plan: BuildPlan, given: BuildValues, lines: _Lines, notify: Notify) -> str:
    """Run the build; returns the id of the image."""
    with tempfile.TemporaryDirectory(prefix="gusset-build-") as folder:
        context, result = Path(folder) / "context", Path(folder) / "id"
        write_context(plan, context, mount_secrets=tool.mounts_secrets)
        with _secrets_folder(plan, given.values) as secrets:
            for attempt in range(1, _ATTEMPTS + 1):
                process = tool.start(plan, context, result=result, secrets_key=given.digest(), folder=secrets)
                notify("build", str(process.pid))
                if _follow(process, lines) == 0:
                    return result.read_text().strip()
                if attempt == _ATTEMPTS or not any(_REMOVED_MEANWHILE in line for line in lines.last):
                    break
                log.warning("another process removed an image during the build, which starts again")
        raise _failure(list(lines.last))


def _follow(process: subprocess.Popen[str], lines: _Lines) -> int:
    """Add what the process prints to the lines, until it ends; its exit status. An exception ends it."""
    lines.last.clear()
    with process:
        try:
            for line in process.stdout or ():
                lines.add(line)
        except BaseException:
            end_group(process.pid)
            raise
    return process.returncode


@contextmanager
def _secrets_folder(plan: BuildPlan, values: Mapping[str, SecretValue]) -> Iterator[Path | None]:
    """A folder in memory with the contents of the plan's secrets. The reaper removes it after a kill."""
    if not plan.secrets:
        yield None
        return
    folder = ContainerFolder.create(run_id(), None)
    try:
        folder.replace({each.id: SecretValue(each.content(values)) for each in plan.secrets})
        yield folder.path
    finally:
        folder.close()


def _failure(last: list[str]) -> ModelFailed | HostError:
    lines = "\n".join(f"  {line}" for line in last)
    if any("no space left on device" in line.lower() for line in last):
        return HostError(
            f"the image cannot be built because a disk is full; the last lines:\n{lines}",
            hint="make room on the disk of the engine's images and of " + tempfile.gettempdir(),
        )
    return ModelFailed(
        f"the image cannot be built; the last lines:\n{lines}",
        hint="see system_packages, requirements and build_commands in config.yaml",
    )


def _scan(engine: Engine, image: str, target: str, given: BuildValues) -> Report | None:
    """Search the image, which messages name `target`, for all values that the build was given."""
    wanted = {name: (value,) for name, value in given.values.items()}
    if not ValueSearch(wanted).names:
        return None
    source = ImageSource.from_archive(engine.images.export(image))
    report = scan_image(source, Wanted(wanted, given.allowed), target=target)
    if report.found:
        names = ", ".join(sorted({each.secret for each in report.found}))
        raise CheckFailed(
            f"{target} contains values of secrets: {names}",
            problems=report.problems(),
            hint="the image and the cache of this build were removed. Use the secret in a command without "
            "writing it to a file, a name or the output of a tool that keeps it; `--allow NAME` accepts it",
        )
    if report.errors:
        raise ImageUnreadable(
            f"{target} could not be searched completely, and was removed:\n" + "\n".join(report.errors)
        )
    return report
