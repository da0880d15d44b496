"""Creates a model folder that works, for `gusset init`."""

from __future__ import annotations

import json
from pathlib import Path

from gusset.errors import Conflict, HostError, UsageError

_CONFIG = """\
model_name: {name}
model_metadata:
  example_model_input: {{"text": "hello"}}
# Packages that the model needs; `gusset serve` installs them for it.
requirements: []
# Names of the secrets that the model may read. Never write values here:
# store each with `gusset secret set NAME`.
secrets:
  api_key: null
"""

_MODEL = '''\
class Model:
    """One object per process: created, loaded once, then called for each request."""

    def __init__(self, **kwargs):
        self._secrets = kwargs["secrets"]

    def load(self):
        """Runs once before the first request: open files, download weights, create clients."""

    def predict(self, inputs):
        """Called with the JSON of the request; returns the JSON of the response."""
        api_key = self._secrets["api_key"]  # look it up on every use: the value may change while serving
        return {"inputs": inputs, "authorized": bool(api_key)}
'''


def create_package(folder: Path, name: str) -> list[Path]:
    """Write a `config.yaml` that declares a secret, and a `Model` that uses it; return the files.

    Raises:
        Conflict: one of the files exists already; then nothing is written.
        HostError: the folder cannot be written.
    """
    if not name.strip():
        raise UsageError("the model needs a name", hint="give a folder with a name")
    texts = {
        folder / "config.yaml": _CONFIG.format(name=json.dumps(name)),
        folder / "model" / "model.py": _MODEL,
    }
    try:
        for path in texts:
            if path.exists():
                raise Conflict(f"{path} exists already", hint="choose a new folder, or move the file away")
        for path, text in texts.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("x", encoding="utf-8") as file:
                file.write(text)
    except FileExistsError as error:
        raise Conflict(f"{error.filename} exists already", hint="choose a new folder") from None
    except OSError as error:
        reason = (error.strerror or "an error").lower()
        raise HostError(
            f"{folder} cannot be written: {reason}", hint="choose a folder that you may write to"
        ) from None
    return list(texts)
