"""Serves one model folder with secrets from a folder, as a process, without the command line.

`python -m tests.serving.driver '{"folder": ..., "secrets_dir": ..., "declared": [...], ...}'`
"""

from __future__ import annotations

import json
import sys
import threading
from contextlib import nullcontext
from pathlib import Path

from gusset.errors import GussetError, outcome_of
from gusset.runtime import supervision
from gusset.runtime.declared_secrets import DeclaredSecret
from gusset.runtime.supervision import ServingOptions
from gusset.secrets.sources.chain import ChainSource
from gusset.secrets.sources.environment import EnvironmentSource
from gusset.secrets.sources.folder import FolderSource
from gusset.serving.deployment import ModelDeployment
from gusset.serving.supervisor.supervisor import serve


def main(given: dict[str, object], environ: dict[str, str]) -> int:
    supervision._STABLE = float(str(given["stable_seconds"]))
    folder = Path(str(given["folder"]))
    _fail_threads(folder.parent)
    deployment = ModelDeployment(
        name="tiny",
        folder=folder,
        model_file=folder / str(given["model_file"]),
        config={"model_name": "tiny", "requirements": ["no-such"]},
        secrets=tuple(DeclaredSecret(name, 2 + n) for n, name in enumerate(given["declared"])),
        package_dirs=(folder / "packages",),
        environment_variables={"FROM_CONFIG": "yes"},
        predict_concurrency=int(str(given["concurrency"])),
        python=str(given["python"]),
    )
    source = ChainSource([FolderSource(Path(str(given["secrets_dir"]))), EnvironmentSource(environ)])
    try:
        return serve(
            lambda: nullcontext((deployment, source)),
            ServingOptions(
                port=int(str(given["port"])),
                cache=folder.parent / "cache",
                allow_missing=given["allow_missing"],
                drain_seconds=float(str(given["drain_seconds"])),
                announce=lambda address: print(f"ready at {address}", flush=True),
            ),
            mask_responses=bool(given["mask_responses"]),
        )
    except GussetError as error:
        print(f"error: {error.message}\n  {error.hint or ''}", file=sys.stderr)
        return outcome_of(error).exit


def _fail_threads(folder: Path) -> None:
    """The start of a thread fails once if `folder` has a file of its name, as when the system has no more."""
    start = threading.Thread.start

    def start_or_fail(thread: threading.Thread) -> None:
        if (folder / thread.name).exists():
            (folder / thread.name).unlink()
            raise RuntimeError("can't start new thread")
        start(thread)

    threading.Thread.start = start_or_fail


if __name__ == "__main__":
    import os

    # Of the workers: byte code is checked against its source by whole seconds, and tests edit models faster.
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    sys.exit(main(json.loads(sys.argv[1]), dict(os.environ)))
