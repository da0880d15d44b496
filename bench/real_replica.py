"""One replica with gusset's own client, for `rotation.py`: python bench/real_replica.py ADDRESS NAME < token

Prints each value that a look-up gives, with the monotonic time.
"""

from __future__ import annotations

import sys
import threading
import time

from gusset.client.manager_client import ManagerClient
from gusset.client.manager_source import ManagerSource
from gusset.secrets.mapping import Secrets
from gusset.secrets.value import SecretValue


def main(address: str, name: str) -> None:
    source = ManagerSource(ManagerClient(address, SecretValue(sys.stdin.readline().strip().encode())))
    held = {each: delivered.value for each, delivered in source.read([name]).items()}
    secrets = Secrets([name], held, config_file="config.yaml")
    print(secrets[name], time.monotonic(), flush=True)
    for _ in source.watch([name], threading.Event()):
        secrets.replace({each: delivered.value for each, delivered in source.read([name]).items()})
        print(secrets[name], time.monotonic(), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
