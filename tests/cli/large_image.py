"""Writes an archive with a layer of 2 GiB, compressed by gzip, to standard output; it is never whole anywhere."""

from __future__ import annotations

import hashlib
import json
import sys
import tarfile
import zlib

SIZE = 1 << 31
HEADER = 512


def compressed_layer() -> tuple[bytes, str]:
    """The compressed layer, which is small, and the digest of its content."""
    compressor, content = zlib.compressobj(1, zlib.DEFLATED, 31), hashlib.sha256()
    info = tarfile.TarInfo("weights")
    info.size = SIZE
    zeros = bytes(1 << 20)
    pieces = [info.tobuf(), *[zeros] * (SIZE // len(zeros)), bytes(2 * HEADER)]
    packed = []
    for piece in pieces:
        content.update(piece)
        packed.append(compressor.compress(piece))
    return b"".join([*packed, compressor.flush()]), content.hexdigest()


def write(name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    sys.stdout.buffer.write(info.tobuf() + data + bytes(-len(data) % HEADER))


layer, diff_id = compressed_layer()
write("1/layer.tar", layer)
config = {"rootfs": {"diff_ids": [f"sha256:{diff_id}"]}, "history": [{"created_by": "RUN large"}]}
write("config.json", json.dumps(config).encode())
write("manifest.json", json.dumps([{"Config": "config.json", "Layers": ["1/layer.tar"]}]).encode())
sys.stdout.buffer.write(bytes(2 * HEADER))
