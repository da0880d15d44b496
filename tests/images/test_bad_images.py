"""Images that are damaged, incomplete, hostile or unusual: never a crash, never clean, memory bounded."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import tarfile
import zipfile
from collections.abc import Callable

import pytest

from gusset.errors import ImageUnreadable
from gusset.images.compression import Limits
from gusset.images.report import Report
from tests.images.archives import OciImage, digest_of, docker_archive, layer, member
from tests.images.test_scan import VALUE, only, scan, wanted

SMALL = Limits(expanded=1_000_000, ratio=10)


def error_of(report: Report) -> str:
    assert not report.is_clean
    assert report.found == []
    assert len(report.errors) == 1, report.errors
    return report.errors[0]


def manifest_of(image: OciImage) -> dict[str, list[dict[str, str]]]:
    manifest: dict[str, list[dict[str, str]]] = json.loads(
        image.files["blobs/" + image.manifests[0]["digest"].replace(":", "/")]
    )
    return manifest


def layer_file(image: OciImage, index: int) -> str:
    return "blobs/" + manifest_of(image)["layers"][index]["digest"].replace(":", "/")


@pytest.mark.parametrize("packing", ["+gzip", "+zstd"])
def test_a_layer_that_is_a_bomb_is_an_error(packing: str) -> None:
    """It is named, with what it expands to; the other layers are searched."""
    image = OciImage().add(layer(("a", b"a")), layer(("b", bytes(20_000_000))), packing=packing)

    assert "layer 2 of 2" in (error := error_of(scan(image, limits=SMALL))) and "expands to over" in error
    image.add(layer(("c", VALUE)))
    assert [each.file for each in scan(image, limits=SMALL).found] == ["c"]


def test_a_bomb_in_a_file_of_a_layer_is_an_error() -> None:
    """The file is named. All compressed files of a layer count together."""
    bombs = [(f"{number}.gz", gzip.compress(bytes(400_000))) for number in range(5)]

    assert "2.gz" in error_of(scan(OciImage().add(layer(*bombs)), limits=SMALL))
    assert scan(OciImage().add(layer(*bombs[:2])), limits=SMALL).is_clean


def test_a_member_with_endless_extended_headers_is_an_error() -> None:
    """They would be kept until its own header comes, and a small layer can expand to many of them."""
    header = (member("x", type=tarfile.XHDTYPE), b"900000 a=" + b"b" * 899_990 + b"\n")
    small = (member("x", type=tarfile.XHDTYPE), b"")
    for headers in ([header] * 3, [small] * 5_000):
        image = OciImage().add(layer(*headers, ("f", b"f"), format=tarfile.USTAR_FORMAT), packing="+gzip")
        assert "extended headers" in error_of(scan(image))


def test_an_archive_that_is_a_bomb_is_an_error() -> None:
    """It is not read to its end."""
    bomb = gzip.compress(layer(("a", bytes(20_000_000))))
    with pytest.raises(ImageUnreadable, match="expands"):
        scan(bomb, limits=SMALL)


def test_a_layer_that_is_missing_is_named() -> None:
    """As in an archive that was cut between two files."""
    image = OciImage().add(layer(("a", b"a")), layer(("b", b"b")))
    del image.files[layer_file(image, 1)]

    assert "layer 2 of 2" in (error := error_of(scan(image))) and "not in the archive" in error


def test_a_missing_config_is_an_error() -> None:
    """Without it nobody knows which layers the image has."""
    image = OciImage().add(layer(("a", b"a")))
    config = manifest_of(image)["config"]["digest"]  # type: ignore[call-overload]
    del image.files["blobs/" + config.replace(":", "/")]

    assert "lacks the file blobs/sha256/" in error_of(scan(image))


@pytest.mark.parametrize("packing", ["", "+gzip", "+zstd"])
def test_a_layer_with_another_digest_is_an_error(packing: str) -> None:
    """Although its content is a whole archive."""
    image = OciImage().add(layer(("a", b"a")), packing=packing)
    other = OciImage().add(layer(("a", b"b")), packing=packing)
    image.files[layer_file(image, 0)] = other.files[layer_file(other, 0)]

    assert "the digest of its content" in error_of(scan(image))


@pytest.mark.parametrize("pack", [lambda data: data, gzip.compress])
def test_a_layer_of_an_archive_of_docker_with_another_digest_is_an_error(
    pack: Callable[[bytes], bytes],
) -> None:
    """There the image's config has the digest of the content."""
    data = layer(("a", b"a"))
    config = json.dumps({"rootfs": {"diff_ids": [digest_of(data)]}}).encode()
    manifest = json.dumps([{"Config": "c.json", "Layers": ["1/layer.tar"]}]).encode()

    def archive(content: bytes) -> bytes:
        return layer(("1/layer.tar", pack(content)), ("c.json", config), ("manifest.json", manifest))

    assert scan(archive(data)).is_clean
    assert "the digest of its content" in error_of(scan(archive(layer(("a", b"b")))))


def test_a_config_with_another_number_of_layers_is_an_error() -> None:
    """The layers could not be checked."""
    image = OciImage().add(layer(("a", b"a")))
    manifest = manifest_of(image)
    manifest["layers"] *= 2
    image.manifests = [image.blob(json.dumps(manifest).encode(), "")]

    assert "the number of layers is not that of the image's config" in scan(image).errors[0]


def test_a_layer_that_is_encrypted_is_an_error() -> None:
    """What cannot be read may contain anything."""
    image = OciImage().add(layer(("a", b"a")))
    manifest = manifest_of(image)
    kind = "application/vnd.oci.image.layer.v1.tar+gzip+encrypted"
    manifest["layers"] = [image.blob(os.urandom(3_000), kind)]
    image.manifests = [image.blob(json.dumps(manifest).encode(), "")]

    assert "encrypted" in error_of(scan(image))


def test_what_is_no_layer_needs_not_be_a_tar_archive() -> None:
    """As the statements about how an image was built; they are searched."""
    image = OciImage().add(layer(("a", b"a")))
    manifest = manifest_of(image)
    statement = json.dumps({"predicate": {"invocation": {"token": VALUE.decode()}}}).encode()
    manifest["layers"] = [image.blob(statement, "application/vnd.in-toto+json")]  # type: ignore[list-item]
    image.manifests.append(image.blob(json.dumps(manifest).encode(), ""))

    assert only(scan(image)).secret == "token"


@pytest.mark.parametrize(
    "index",
    [
        b"",
        b"[]",
        b"{}",
        b"[" * 100_000,
        b'{"manifests": 7}',
        b'{"manifests": [{"digest": 7}]}',
        b'{"manifests": [{"digest": "sha256:../../etc"}]}',
        b"\xff\xfe{",
    ],
)
def test_an_index_that_is_not_one_is_an_error(index: bytes) -> None:
    """Whatever is in it."""
    assert not scan(layer(("index.json", index), ("oci-layout", b"{}"))).is_clean


def test_indexes_that_contain_each_other_end() -> None:
    """The same index is read once, and a deep nest is an error."""
    image = OciImage().add(layer(("a", b"a")))
    for _ in range(20):
        inner = json.dumps({"manifests": image.manifests}).encode()
        image.manifests = [image.blob(inner, "application/vnd.oci.image.index.v1+json")]

    assert "contain each other" in error_of(scan(image))


def test_an_archive_with_both_kinds_of_index_has_one_image() -> None:
    """As newer versions of Docker write it."""
    image = OciImage().add(layer(("a", VALUE)), packing="")
    manifest = manifest_of(image)
    config = "blobs/" + manifest["config"]["digest"].replace(":", "/")  # type: ignore[call-overload]
    entry = {"Config": config, "RepoTags": ["app:9"], "Layers": [layer_file(image, 0)]}
    image.files["manifest.json"] = json.dumps([entry]).encode()
    report = scan(image)

    assert report.images == ["app:9"]
    assert only(report).image == "app:9"


def test_a_layer_whose_first_file_has_a_bracket_in_its_name_is_a_layer() -> None:
    """It begins like JSON."""
    assert only(scan(OciImage().add(layer(("[id]/page.js", VALUE)), packing=""))).file == "[id]/page.js"


def test_links_between_layers_are_followed() -> None:
    """Podman and old versions of Docker write the same layer once."""
    data = docker_archive(layer(("a", VALUE)))
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        files = {each.name: archive.extractfile(each).read() for each in archive}  # type: ignore[union-attr]
    entry = json.loads(files["manifest.json"])
    real = entry[0]["Layers"][0]
    entry[0]["Layers"] = ["other/layer.tar"]
    files["manifest.json"] = json.dumps(entry).encode()
    link = member("other/layer.tar", type=tarfile.SYMTYPE, linkname=f"../{real}")

    assert only(scan(layer((link, b""), *files.items()))).layer == 1


def test_an_extended_header_of_any_size_takes_no_memory() -> None:
    """It is an error if it is too large for any program to accept."""
    header = member("long", type=b"x", size=3 << 30).tobuf()
    image = OciImage().add(header + bytes(10_000))

    assert "extended header" in error_of(scan(image))


@pytest.mark.parametrize("size", [b"-0000000001\0", b"99999999999\0", b"\xff" * 12, b"\x80" + b"\xff" * 11])
def test_a_size_that_is_none_is_an_error(size: bytes) -> None:
    """A header with a valid checksum and a negative or absurd size."""
    header = bytearray(member("a").tobuf())
    header[124:136] = size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)

    assert not scan(OciImage().add(bytes(header) + bytes(2_000))).is_clean


def test_a_file_that_cannot_be_opened_is_noted_and_searched_as_it_is() -> None:
    """A damaged gzip file, an encrypted zip archive, one with an unknown method."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("inner", b"x" * 1_000)
    encrypted = bytearray(packed.getvalue())
    encrypted[6] |= 1
    files = {
        "damaged.gz": gzip.compress(os.urandom(500))[:-30] + b"?" * 30,
        "method.zip": packed.getvalue(),
        "encrypted.zip": bytes(encrypted),
        "short.gz": b"\x1f\x8b\x08",
    }
    image = OciImage().add(layer(*files.items(), ("clean", b"clean")))
    report = scan(image)

    assert report.is_clean
    assert {name for name in files if any(name in note for note in report.notes)} == set(files)
    found = only(scan(image.add(layer(("damaged.gz", files["damaged.gz"] + VALUE)))))
    assert found.file == "damaged.gz"


def test_any_end_of_a_nested_archive_leaves_the_layer_whole() -> None:
    """A nested archive that is cut anywhere does not disturb the files after it."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inner", b"x" * 1_000)
    for whole in (
        packed.getvalue(),
        layer(("inner", b"x" * 600)),
        gzip.compress(layer(("inner", b"x" * 600))),
    ):
        for size in range(1, len(whole), max(1, len(whole) // 25)):
            image = OciImage().add(layer(("nested", whole[:size]), ("after", VALUE)))
            assert only(scan(image)).file == "after"


def test_many_hits_of_one_secret_do_not_hide_another() -> None:
    """Only so many are kept of each secret; the rest is counted."""
    files = [(f"{number}", b"password " * 50) for number in range(1_500)]
    image = OciImage().add(layer(*files, ("last", VALUE)))
    report = scan(image, wanted(word=b"password", token=VALUE))

    assert only(report).file == "last"
    assert len(report.weak) == 1_000
    assert any("25,000 more occurrences" in note for note in report.notes)
    assert len(report.problems()) == 1 + 20 + 1


@pytest.mark.slow
def test_a_value_that_fills_a_file_takes_no_memory() -> None:
    """Each occurrence is counted and forgotten."""
    image = OciImage().add(layer(("a", VALUE * 100_000)))

    assert only(scan(image)).count == 100_000


def test_digests_of_other_algorithms_are_checked() -> None:
    """The specification allows them."""
    image = OciImage().add(layer(("a", b"a")))
    manifest = manifest_of(image)
    data = image.files.pop(layer_file(image, 0))
    digest = hashlib.sha512(data).hexdigest()
    image.files[f"blobs/sha512/{digest}"] = data
    manifest["layers"][0]["digest"] = f"sha512:{digest}"
    image.manifests = [image.blob(json.dumps(manifest).encode(), "")]

    assert scan(image).is_clean

    image.files[f"blobs/sha512/{digest}"] = data + b"\0"
    assert "sha512" in scan(image).errors[0]
