"""How fast an image is searched for 100 secrets, beside `gunzip` alone: python bench/scan.py [MEGABYTES] [ROUNDS]

The layer's content are files of this machine: programs, libraries, Python code.
Prints Markdown tables of MB of layer content per second of the clock, and of
processor time. A scan uses two cores: one decompresses while the other searches.
`gzip -dc` is the program, `zlib` is Python's decompressor on the same layer.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import random
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from backports import zstd
from masking import make_secrets
from measure import interleave, table

from gusset.images.scan import Wanted, scan_image
from gusset.images.sources import ImageSource, read_chunks
from gusset.secrets.value import SecretValue

CHUNK = 1 << 18
FOLDERS = (sys.prefix, "/usr/share", "/usr/lib")
PACKINGS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": partial(gzip.compress, compresslevel=6),
    "zstd": partial(zstd.compress, level=3),
    "tar": lambda data: data,
}


def write_layer(path: Path, size: int) -> int:
    """Write a tar archive of about `size` bytes; how many files it has."""
    files = 0
    with path.open("wb") as file, tarfile.open(fileobj=file, mode="w") as archive:
        while file.tell() < size:
            for found in (each for folder in FOLDERS for each in Path(folder).rglob("*")):
                if found.is_file() and not found.is_symlink():
                    archive.add(found, f"{files}{found}")
                    files += 1
                if file.tell() >= size:
                    break
    return files


def write_image(folder: Path, layer: bytes, pack: Callable[[bytes], bytes]) -> None:
    """Write an OCI folder with this layer."""

    def blob(data: bytes) -> dict[str, object]:
        digest = hashlib.sha256(data).hexdigest()
        path = folder / "blobs" / "sha256" / digest
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return {
            "mediaType": "application/vnd.oci.image.layer.v1.tar",
            "digest": f"sha256:{digest}",
            "size": len(data),
        }

    config = {"rootfs": {"diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]}}
    manifest = {"config": blob(json.dumps(config).encode()), "layers": [blob(pack(layer))]}
    index = {"manifests": [blob(json.dumps(manifest).encode())]}
    (folder / "index.json").write_text(json.dumps(index))


def scan(folder: Path, wanted: Wanted) -> None:
    report = scan_image(ImageSource.from_folder(folder), wanted, target="bench")
    assert report.is_clean, (report.found, report.errors)


def pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        yield from read_chunks(file, str(path))


def gunzip(path: Path) -> None:
    decoder = zlib.decompressobj(31)
    for piece in pieces(path):
        while piece:
            decoder.decompress(piece, 1 << 20)
            piece = decoder.unconsumed_tail


def main() -> None:
    size = int(sys.argv[1] if len(sys.argv) > 1 else 500) * 1_000_000
    rounds = int(sys.argv[2] if len(sys.argv) > 2 else 5)
    values = make_secrets(100, random.Random(7))
    wanted = Wanted({f"secret_{number}": [SecretValue(value)] for number, value in enumerate(values)})
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "layer.tar")
        files = write_layer(path, size)
        layer = path.read_bytes()
        path.unlink()
        for name, pack in PACKINGS.items():
            write_image(Path(scratch, name), layer, pack)
        size = len(layer)
        del layer
        blobs = Path(scratch, "gzip", "blobs", "sha256").iterdir()
        gz = max(blobs, key=lambda each: each.stat().st_size)
        compare(Path(scratch), gz, wanted, size=size, files=files, rounds=rounds)


def compare(scratch: Path, gz: Path, wanted: Wanted, *, size: int, files: int, rounds: int) -> None:
    processor: dict[str, list[float]] = {}

    def rate(name: str, once: Callable[[], object]) -> float:
        begin, used = time.perf_counter(), processor_seconds()
        once()
        processor.setdefault(name, []).append(size / (processor_seconds() - used) / 1e6)
        return size / (time.perf_counter() - begin) / 1e6

    def program() -> None:
        subprocess.run(["gzip", "-dc"], stdin=gz.open("rb"), stdout=subprocess.DEVNULL, check=True)

    tasks: dict[str, Callable[[], object]] = {
        "zlib alone": lambda: gunzip(gz),
        "gzip -dc alone": program,
        **{f"scan, layer in {name}": partial(scan, scratch / name, wanted) for name in PACKINGS},
    }
    parts = {name: partial(rate, name, once) for name, once in tasks.items()}
    title = f"A layer of {size / 1e6:,.0f} MB in {files:,} files, searched for {len(wanted.values)} secrets"
    table(title, "MB/s", interleave(parts, rounds), "zlib alone")
    table("The same by processor time", "MB/s", processor, "zlib alone")


def processor_seconds() -> float:
    """Of this process and of its children."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in used)


if __name__ == "__main__":
    main()
