"""Secrets in environment variables."""

from __future__ import annotations

import os
import threading
from collections.abc import Collection, Iterator, Mapping

from gusset.secrets.name import check_name
from gusset.secrets.sources.source import Delivered
from gusset.secrets.value import SecretValue, check_length

ENVIRONMENT_PREFIX = "TRUSS_SECRET_"


class EnvironmentSource:
    """The variables `TRUSS_SECRET_{name}` of an environment, copied by the constructor.

    A value is the variable's exact bytes, UTF-8 or not. The caller warns that
    environment variables are not safe for secrets; `Delivered.origin` is the
    variable's name.
    """

    last_error: str | None = None

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._values = {
            key: SecretValue(os.fsencode(text))
            for key, text in environ.items()
            if key.startswith(ENVIRONMENT_PREFIX)
        }

    def read(self, names: Collection[str]) -> Mapping[str, Delivered]:
        """Those of `names` that have a variable; an empty variable is an empty value.

        Raises:
            InvalidName: one of `names` is not a valid name.
            InvalidValue: a value is larger than a secret may be.
        """
        found = {}
        for name in names:
            key = ENVIRONMENT_PREFIX + check_name(name)
            if key in self._values:
                check_length(self._values[key], key)
                found[name] = Delivered(self._values[key], None, key)
        return found

    def watch(self, names: Collection[str], stop: threading.Event) -> Iterator[None]:
        """Wait for `stop` and never yield: the environment of a running process does not change."""
        stop.wait()
        yield from ()
