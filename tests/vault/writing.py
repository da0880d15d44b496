"""A process that writes secrets and says so: python -m tests.vault.writing HOME DATABASE NAME START COUNT

Prints the version of each write once it is acknowledged; the value of a write is the text of its number.
"""

from __future__ import annotations

import sys
from pathlib import Path

from gusset.secrets.value import SecretValue
from gusset.vault import open_vault
from tests.vault.conftest import settings_in


def main(home: str, database: str, name: str, start: str, count: str) -> None:
    with open_vault(settings_in(Path(home), database=database)) as vault:
        for number in range(int(start), int(start) + int(count)):
            info = vault.secrets.writer.set(name, SecretValue(b"value %d" % number), actor="writer")
            print(number, info.version, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
