"""Images made by hand: layers, configs and manifests, as an OCI folder's files or in an archive."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from backports import zstd

TAR = "application/vnd.oci.image.layer.v1.tar"
PACK = {"": lambda data: data, "+gzip": gzip.compress, "+zstd": zstd.compress}


def member(name: str = "file", **fields: Any) -> tarfile.TarInfo:
    found = tarfile.TarInfo(name)
    for key, value in fields.items():
        setattr(found, key, value)
    return found


def layer(*members: tuple[tarfile.TarInfo | str, bytes], format: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar archive of these files; a name stands for an ordinary file."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=format) as archive:
        for info, content in members:
            info = member(info) if isinstance(info, str) else info
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return packed.getvalue()


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@dataclass
class OciImage:
    """The files of an OCI folder; `change` those that a test wants to be different."""

    files: dict[str, bytes] = field(default_factory=dict)
    manifests: list[dict[str, Any]] = field(default_factory=list)

    def blob(self, data: bytes, media_type: str, **more: Any) -> dict[str, Any]:
        """Add a blob; its descriptor."""
        digest = digest_of(data)
        self.files[f"blobs/{digest.replace(':', '/')}"] = data
        return {"mediaType": media_type, "digest": digest, "size": len(data), **more}

    def add(
        self,
        *layers: bytes,
        config: Mapping[str, Any] | None = None,
        history: Sequence[str] | None = None,
        packing: str = "+gzip",
        annotations: Mapping[str, str] | None = None,
        encode: Callable[[Any], str] = json.dumps,
        **descriptor: Any,
    ) -> OciImage:
        """Add an image with these layers, each a tar archive."""
        made = [f"RUN step {number}" for number in range(1, len(layers) + 1)] if history is None else history
        content = {
            "architecture": "amd64",
            "os": "linux",
            "config": config or {},
            "rootfs": {"type": "layers", "diff_ids": [digest_of(each) for each in layers]},
            "history": [{"created_by": text} for text in made],
        }
        manifest = {
            "schemaVersion": 2,
            "config": self.blob(encode(content).encode(), "application/vnd.oci.image.config.v1+json"),
            "layers": [self.blob(PACK[packing](each), TAR + packing) for each in layers],
            "annotations": dict(annotations or {}),
        }
        kind = "application/vnd.oci.image.manifest.v1+json"
        self.manifests.append(self.blob(json.dumps(manifest).encode(), kind, **descriptor))
        return self

    def all_files(self) -> dict[str, bytes]:
        index = {"schemaVersion": 2, "manifests": self.manifests}
        return {
            "oci-layout": b'{"imageLayoutVersion": "1.0.0"}',
            "index.json": json.dumps(index).encode(),
            **self.files,
        }

    def archive(self) -> bytes:
        return layer(*self.all_files().items())

    def write(self, folder: Path) -> Path:
        for name, data in self.all_files().items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return folder


def docker_archive(*layers: bytes, config: Mapping[str, Any] | None = None, tag: str = "app:latest") -> bytes:
    """As `docker save` wrote it for years: layers as tar archives in folders, the manifest at the end."""
    content = {
        "architecture": "amd64",
        "os": "linux",
        "config": config or {},
        "rootfs": {"type": "layers", "diff_ids": [digest_of(each) for each in layers]},
        "history": [{"created_by": f"RUN step {number}"} for number in range(1, len(layers) + 1)],
    }
    data = json.dumps(content).encode()
    name = f"{hashlib.sha256(data).hexdigest()}.json"
    files = [(f"{number:064x}/layer.tar", each) for number, each in enumerate(layers)]
    manifest = [{"Config": name, "RepoTags": [tag], "Layers": [path for path, _ in files]}]
    return layer(*files, (name, data), ("manifest.json", json.dumps(manifest).encode()))


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    return iter([data[start : start + size] for start in range(0, len(data), size)])
