"""A proxy as a process of its own, so that it can have few file descriptors.

`python -m tests.containers.limited_proxy [CERTIFICATE KEY]` prints the proxy's
port, and ends with its standard input.
"""

from __future__ import annotations

import sys
from pathlib import Path

from gusset.runtime.tls import ServerTls, TlsFiles
from tests.containers.wire import OK, ROUTES, SWITCHING, Application, RunningProxy, Wire


def handle(wire: Wire) -> None:
    """Respond at once, switch protocols, or not at all, as the request wants it."""
    while head := wire.head():
        if b"Upgrade" in head:
            wire.send(SWITCHING)
            while data := wire.exactly(1):
                wire.send(data)
        elif b" /hang " not in head:
            wire.send(OK)


def main(files: list[str]) -> None:
    tls = ServerTls.open(TlsFiles(*map(Path, files))) if files else None
    proxy = RunningProxy(Application.start(handle), ROUTES, tls=tls)
    proxy.start()
    print(proxy.port, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1:])
