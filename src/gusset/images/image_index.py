"""Reads which images are in an archive or OCI folder: indexes, manifests, configs and their layers."""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from gusset.images.compression import Damaged

_MAX_DEPTH = 8  # of indexes in indexes
_REF_NAMES = ("io.containerd.image.name", "org.opencontainers.image.ref.name")
_DIGEST = re.compile(r"(sha256|sha384|sha512):([0-9a-f]+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A layer of an image. `index` counts from 1; `blob` is its file; `created_by` its history entry."""

    index: int
    blob: str
    digest: str
    diff_id: str | None
    is_tar: bool
    may_be_absent: bool
    created_by: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """An image of one platform. `config` and `manifest` are its files; Docker's archives have no manifest."""

    names: tuple[str, ...]
    platform: str
    config: str
    manifest: str | None
    layers: tuple[Layer, ...]
    history: tuple[str, ...]
    digest: str


@dataclass(slots=True)
class ImageIndex:
    """The images; `indexes` are the files that list them, `absent` those that are listed and not there."""

    images: list[Image] = field(default_factory=list)
    indexes: list[str] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)


def read_image_index(
    documents: Mapping[str, bytes], links: Mapping[str, str], names: Iterable[str]
) -> ImageIndex:
    """The images of all platforms. `documents` are the JSON files, `links` links to files, `names` all files.

    Raises:
        Damaged: there is no index, or it names no image that is there, or what it names is not JSON.
    """
    reader = _IndexReader(documents, links, frozenset(names))
    if "index.json" in documents:
        reader.read_index("index.json", (), 0)
    if "manifest.json" in documents:
        reader.read_docker_manifest("manifest.json")
    if not reader.index.images:
        raise Damaged("it has neither an index.json nor a manifest.json with an image, or it is truncated")
    return reader.index


class _IndexReader:
    def __init__(
        self, documents: Mapping[str, bytes], links: Mapping[str, str], names: frozenset[str]
    ) -> None:
        self._documents = documents
        self._links = links
        self._names = names
        self.index = ImageIndex()

    def read_index(self, name: str, image_names: tuple[str, ...], depth: int) -> None:
        """Add the images of an OCI index, and of the indexes in it."""
        if depth > _MAX_DEPTH:
            raise Damaged("its indexes contain each other")
        if name in self.index.indexes:
            return
        self.index.indexes.append(name)
        for descriptor in _mappings(self._document(name).get("manifests")):
            file = self._file_of(descriptor)
            annotations = _mapping(descriptor.get("annotations"))
            found = (
                tuple(_text(annotations[key]) for key in _REF_NAMES if key in annotations)[:1] or image_names
            )
            if file not in self._documents:
                platform = _platform(_mapping(descriptor.get("platform")))
                self.index.absent.append(f"{platform or 'a manifest'} ({_text(descriptor.get('digest'))})")
            elif "manifests" in self._document(file):
                self.read_index(file, found, depth + 1)
            else:
                self._add(self._oci_image(file, found, descriptor))

    def _oci_image(self, file: str, names: tuple[str, ...], descriptor: Mapping[str, Any]) -> Image:
        manifest = self._document(file)
        layers = _mappings(manifest.get("layers"))
        config_file = self._file_of(_mapping(manifest.get("config")))
        config = self._document(config_file)
        platform = _platform(_mapping(descriptor.get("platform"))) or _platform(config)
        return Image(
            names=names,
            platform=platform,
            config=config_file,
            manifest=file,
            layers=tuple(
                replace(
                    layer,
                    digest=_text(each.get("digest")),
                    is_tar="tar" in _text(each.get("mediaType")),
                    may_be_absent=any(
                        word in _text(each.get("mediaType")) for word in ("nondistributable", "foreign")
                    ),
                )
                for each, layer in zip(
                    layers, _layers([self._file_of(each) for each in layers], config), strict=True
                )
            ),
            history=_history(config),
            digest=_text(descriptor.get("digest")),
        )

    def read_docker_manifest(self, name: str) -> None:
        """Add the images of an archive of Docker's; those that an index has too only get their names."""
        self.index.indexes.append(name)
        for entry in _mappings(self._json(name)):
            config_file = self._resolve(_text(entry.get("Config")))
            config = self._document(config_file)
            layers = entry.get("Layers")
            files = [self._resolve(_text(each)) for each in (layers if isinstance(layers, list) else [])]
            tags = entry.get("RepoTags")
            self._add(
                Image(
                    names=tuple(_text(tag) for tag in (tags if isinstance(tags, list) else [])),
                    platform=_platform(config),
                    config=config_file,
                    manifest=None,
                    layers=_layers(files, config),
                    history=_history(config),
                    digest="",
                )
            )

    def _add(self, image: Image) -> None:
        """Add an image, or its names to an image that is the same."""
        blobs = [layer.blob for layer in image.layers]
        for index, other in enumerate(self.index.images):
            is_same = other.config == image.config and [layer.blob for layer in other.layers] == blobs
            if is_same and None in (image.manifest, other.manifest):
                names = dict.fromkeys((*image.names, *other.names))
                self.index.images[index] = replace(other, names=tuple(names))
                return
        self.index.images.append(image)

    def _file_of(self, descriptor: Mapping[str, Any]) -> str:
        match = _DIGEST.fullmatch(_text(descriptor.get("digest")))
        if match is None:
            raise Damaged("a manifest or an index has an entry without a digest")
        return self._resolve(f"blobs/{match[1]}/{match[2]}")

    def _resolve(self, name: str) -> str:
        """The file of that name, at the end of a link to it."""
        name = posixpath.normpath(name)
        if name not in self._names and name in self._links:
            return posixpath.normpath(self._links[name])
        return name

    def _document(self, name: str) -> Mapping[str, Any]:
        return _mapping(self._json(name))

    def _json(self, name: str) -> Any:
        if name not in self._documents:
            raise Damaged(f"it lacks the file {name}, or that file is not JSON")
        try:
            return json.loads(self._documents[name])
        except (ValueError, RecursionError):
            raise Damaged(f"its file {name} is not JSON") from None


def _layers(files: list[str], config: Mapping[str, Any]) -> tuple[Layer, ...]:
    """Layers in these files, with what the config says of them."""
    diff_ids = _mapping(config.get("rootfs")).get("diff_ids")
    expected = [_text(each) for each in diff_ids] if isinstance(diff_ids, list) else []
    made = [
        _text(entry.get("created_by"))
        for entry in _mappings(config.get("history"))
        if not entry.get("empty_layer")
    ]
    return tuple(
        Layer(
            index=index + 1,
            blob=file,
            digest=expected[index] if len(expected) == len(files) else "",
            diff_id=expected[index] if len(expected) == len(files) else None,
            is_tar=True,
            may_be_absent=False,
            created_by=made[index] if len(made) == len(files) else None,
        )
        for index, file in enumerate(files)
    )


def strings_of(document: bytes) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """All keys and strings of a JSON document, each with its path. Nothing if it is not JSON."""
    try:
        rest: list[tuple[tuple[str | int, ...], Any]] = [((), json.loads(document))]
    except (ValueError, RecursionError):
        return
    while rest:
        path, item = rest.pop()
        if isinstance(item, str):
            yield path, item
        elif isinstance(item, list):
            rest.extend(((*path, index), each) for index, each in enumerate(item))
        elif isinstance(item, dict):
            for key, each in item.items():
                yield (*path, key), key
                rest.append(((*path, key), each))


def _history(config: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(_text(entry.get("created_by")) for entry in _mappings(config.get("history")))


def _platform(found: Mapping[str, Any]) -> str:
    parts = (_text(found.get(key)) for key in ("os", "architecture", "variant"))
    return "/".join(part for part in parts if part)


def _mapping(found: Any) -> Mapping[str, Any]:
    return found if isinstance(found, dict) else {}


def _mappings(found: Any) -> list[Mapping[str, Any]]:
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


def _text(found: Any) -> str:
    return found if isinstance(found, str) else ""
