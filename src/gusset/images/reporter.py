"""Makes the report of a scan: joins hits in files with the images, layers and instructions they belong to."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

from gusset.images.blob_scan import CONTENT, Blob, Notes
from gusset.images.compression import Damaged
from gusset.images.hits import Hit, Hits
from gusset.images.image_index import Image, ImageIndex, Layer, read_image_index, strings_of
from gusset.images.report import Finding, Report
from gusset.images.value_search import ValueSearch

_Path = tuple[str | int, ...]


class Reporter:
    """Makes one report, once all files of an image archive were searched."""

    def __init__(
        self,
        target: str,
        search: ValueSearch,
        blobs: Mapping[str, Blob],
        hits: Hits,
        *,
        allowed: Collection[str],
    ) -> None:
        self._target = target
        self._search = search
        self._blobs = blobs
        self._hits = hits
        self._allowed = frozenset(allowed)

    def report(self, links: Mapping[str, str], notes: Notes) -> Report:
        """Make the report. `links` are those among the files; `notes` those of the scan."""
        index, error = self._read_index(links)
        layers = {layer.blob for image in index.images for layer in image.layers if layer.blob in self._blobs}
        precise = self._search_documents(index)
        found = [
            (hit, finding)
            for hit, count in self._hits.counts.items()
            if hit.part != CONTENT or (hit.blob, hit.secret) not in precise
            for finding in self._findings(index, hit, count)
        ]
        found.sort(key=lambda each: (each[1].image, each[1].layer or 0, each[1].file, each[1].secret))
        return Report(
            target=self._target,
            images=[self._name(index, image) for image in index.images],
            found=[each for hit, each in found if each.secret not in self._allowed and not hit.is_weak],
            accepted=[each for _, each in found if each.secret in self._allowed],
            weak=[each for hit, each in found if each.secret not in self._allowed and hit.is_weak],
            errors=[self._masked(each) for each in ([error] if error else self._errors(index, layers))],
            notes=self._notes(index, notes),
            layers=len(layers),
            files=sum(self._blobs[name].files for name in layers),
            size=sum(blob.size for blob in self._blobs.values()),
            secrets=self._search.names,
            ignored=self._search.ignored,
        )

    def _read_index(self, links: Mapping[str, str]) -> tuple[ImageIndex, str | None]:
        """The images, and why they cannot be read, if so."""
        documents = {blob.name: blob.document for blob in self._blobs.values() if blob.document is not None}
        try:
            return read_image_index(documents, links, self._blobs), None
        except Damaged as error:
            return ImageIndex(), f"{self._target}: {error}"

    def _errors(self, index: ImageIndex, layers: Collection[str]) -> Iterator[str]:
        """What was not searched as a whole, and why: layers of images, and other files."""
        for image in index.images:
            for layer in image.layers:
                if why := self._layer_error(layer):
                    where = f"{self._name(index, image)}, layer {layer.index} of {len(image.layers)}"
                    yield f"{where} ({layer.digest or layer.blob}): {why}"
        for blob in self._blobs.values():
            if blob.error and blob.name not in layers:
                yield f"{self._target}, {blob.name}: {blob.error}"

    def _layer_error(self, layer: Layer) -> str | None:
        """Why the layer was not searched as a whole; None if it was."""
        blob = self._blobs.get(layer.blob)
        if blob is None:
            return None if layer.may_be_absent else "it is not in the archive"
        if blob.error:
            return blob.error
        if not layer.is_tar:
            return None
        if not blob.is_layer:
            return "it is not a tar archive, or compressed or encrypted in a way that cannot be read"
        if layer.diff_id is None:
            return "the number of layers is not that of the image's config"
        if blob.diff_id and blob.diff_id != layer.diff_id:
            return "the digest of its content is not the one that the image's config lists"
        return None

    def _search_documents(self, index: ImageIndex) -> set[tuple[str, str]]:
        """Search the strings of configs, manifests and indexes. Returns file and secret of each hit."""
        configs = {image.config for image in index.images}
        manifests = {image.manifest for image in index.images if image.manifest}
        precise = set()
        for name in (*configs, *manifests, *index.indexes):
            blob = self._blobs.get(name)
            for path, text in strings_of(blob.document or b"" if blob else b""):
                for occurrence in self._search.find(text.encode("utf-8", "surrogatepass")):
                    part = _part_of_config(path, text) if name in configs else _part_of_manifest(path)
                    self._hits.add_found(name, part, occurrence.found)
                    precise |= {(name, each.secret) for each in occurrence.found}
        return precise

    def _findings(self, index: ImageIndex, hit: Hit, count: int) -> Iterator[Finding]:
        """The findings of a hit: one for each image that has the file, or one without an image."""
        is_of_image = False
        for image in index.images:
            layer = next((layer for layer in image.layers if layer.blob == hit.blob), None)
            if layer is not None:
                is_of_image = True
                yield self._finding(hit, count, self._name(index, image), layer, image, layer.created_by)
            elif hit.blob in (image.config, image.manifest):
                is_of_image = True
                instruction = _instruction(image.history, hit.part) if hit.blob == image.config else None
                yield self._finding(hit, count, self._name(index, image), None, image, instruction)
        if not is_of_image:
            yield self._finding(hit, count, self._target, None, None, None)

    def _finding(
        self,
        hit: Hit,
        count: int,
        image_name: str,
        layer: Layer | None,
        image: Image | None,
        instruction: str | None,
    ) -> Finding:
        return Finding(
            secret=hit.secret,
            form=hit.form,
            image=self._masked(image_name),
            layer=layer.index if layer else None,
            layers=len(image.layers) if image else 0,
            digest=self._masked(layer.digest if layer else image.digest if image else ""),
            file=hit.path if layer or hit.part != CONTENT else self._masked(hit.blob),
            inside=hit.inside,
            part=hit.part,
            instruction=self._masked(" ".join(instruction.split())) if instruction else None,
            count=count,
        )

    def _name(self, index: ImageIndex, image: Image) -> str:
        """A name that tells the image from the others."""
        name = image.names[0] if image.names else self._target
        return f"{name} ({image.platform})" if len(index.images) > 1 and image.platform else name

    def _notes(self, index: ImageIndex, notes: Notes) -> list[str]:
        texts = [f"not in the archive, and not searched: {each}" for each in index.absent]
        texts += [f"searched as it is, since it cannot be opened: {each}" for each in notes.texts]
        if notes.more:
            texts.append(f"{notes.more:,} more files cannot be opened")
        if self._hits.omitted:
            texts.append(f"{self._hits.omitted:,} more occurrences of values are not listed")
        return [self._masked(each) for each in texts]

    def _masked(self, text: str) -> str:
        return self._hits.masked(text.encode("utf-8", "replace"))


def _part_of_config(path: _Path, text: str) -> str:
    match path:
        case ("config", "Env", int()):
            return f"environment variable {text.partition('=')[0]}"
        case ("config", "Labels", label):
            return f"label {label}"
        case ("config", "Cmd" | "Entrypoint" | "Healthcheck" | "OnBuild", *_):
            return "command"
        case ("history", int(number), *_):
            return f"history, entry {number + 1}"
    return f"config {'.'.join(map(str, path))}"


def _part_of_manifest(path: _Path) -> str:
    if "annotations" in path:
        return f"annotation {path[-1]}"
    return f"manifest {'.'.join(map(str, path))}"


def _instruction(history: Sequence[str], part: str) -> str | None:
    """The entry of the history that made a part of the config: the last that names it."""
    kind, _, name = part.rpartition(" ")
    if kind == "history, entry":
        return history[int(name) - 1]
    word = {"environment variable": "ENV", "label": "LABEL"}.get(kind)
    return next((each for each in reversed(history) if word and word in each and name in each), None)
