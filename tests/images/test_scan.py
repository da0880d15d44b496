"""What a scan of an image finds, in which places and forms, and how it reports it."""

from __future__ import annotations

import base64
import gzip
import io
import json
import random
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gusset.errors import ImageUnreadable, UsageError
from gusset.images.compression import DEFAULT_LIMITS, Limits
from gusset.images.report import Finding, Report
from gusset.images.scan import Wanted, scan_image
from gusset.images.sources import ImageSource
from gusset.secrets.value import SecretValue
from tests.images.archives import OciImage, docker_archive, layer, member, pieces

VALUE = b"hf_Qm3kZ81vTx/w0PzRn5-aB"
OTHER = b"another-value-of-a-secret-77"


def wanted(*allowed: str, **values: bytes) -> Wanted:
    values = values or {"token": VALUE}
    return Wanted({name: [SecretValue(value)] for name, value in values.items()}, allowed)


def scan(
    image: OciImage | bytes,
    what: Wanted | None = None,
    *,
    chunk: int = 10_000,
    limits: Limits = DEFAULT_LIMITS,
) -> Report:
    """Search an image whose archive arrives in chunks. No value may be in any text of the report."""
    data = image if isinstance(image, bytes) else image.archive()
    what = what or wanted()
    report = scan_image(
        ImageSource.from_archive(pieces(data, chunk), limits), what, target="app", limits=limits
    )
    texts = json.dumps(report.data()) + "".join(
        f"{p.location()} {p.message} {p.hint}" for p in report.problems()
    )
    for value in what.values.values():
        assert value[0].reveal().decode("latin-1") not in texts
    return report


def only(report: Report) -> Finding:
    assert report.errors == []
    assert len(report.found) == 1, report.found
    return report.found[0]


def zipped(name: str, content: bytes, *, streamed: bool = False, stored: bool = False) -> bytes:
    class Unseekable(io.BytesIO):
        def seekable(self) -> bool:
            return not streamed

        def seek(self, *where: int) -> int:
            if streamed:
                raise io.UnsupportedOperation
            return super().seek(*where)

        def tell(self) -> int:
            if streamed:
                raise io.UnsupportedOperation
            return super().tell()

    packed = Unseekable()
    method = zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED
    with zipfile.ZipFile(packed, "w", method) as archive:
        archive.writestr("first.txt", b"nothing " * 100)
        archive.writestr(name, content)
    return packed.getvalue()


CONTENTS: Mapping[str, Callable[[bytes], bytes]] = {
    "plain": lambda value: value,
    "base64": base64.b64encode,
    "base64 of a longer text": lambda value: base64.b64encode(b"x" + value + b"yz"),
    "base64 of a longer text, shifted": lambda value: base64.urlsafe_b64encode(b"xy" + value + b"z"),
    "folded base64": lambda value: base64.encodebytes(b"z" * 50 + value * 4),
    "hex": lambda value: value.hex().encode(),
    "URL": lambda value: quote(value, safe="").encode(),
    "JSON": lambda value: json.dumps({"key": value.decode()}).encode(),
    "gzip": gzip.compress,
    "base64 in gzip": lambda value: gzip.compress(base64.b64encode(value)),
    "two members of gzip": lambda value: gzip.compress(b"first") + gzip.compress(value),
    "tar": lambda value: layer(("inner", value)),
    "tar in gzip": lambda value: gzip.compress(layer(("inner", value))),
    "zip": lambda value: zipped("inner", value * 3),
    "zip written to a pipe": lambda value: zipped("inner", value * 3, streamed=True),
    "zip after a line for an interpreter": lambda value: (
        b"#!/usr/bin/env python3\n" + zipped("inner", value * 3)
    ),
    "zip without compression": lambda value: zipped("inner", value, stored=True),
}


@pytest.mark.parametrize("packing", ["", "+gzip", "+zstd"])
@pytest.mark.parametrize("form", CONTENTS)
def test_a_value_in_a_file_is_found_in_every_form(form: str, packing: str) -> None:
    """In layers of every compression; the finding names layer, file and the instruction that made it."""
    content = b"before\n" * 1_000 + CONTENTS[form](VALUE)
    if "zip" in form or "tar" in form:
        content = CONTENTS[form](VALUE)
    image = OciImage().add(layer(("etc/a", b"a")), layer(("srv/leak", content), ("b", b"b")), packing=packing)

    found = only(scan(image))

    assert (found.secret, found.layer, found.layers, found.file) == ("token", 2, 2, "srv/leak")
    assert found.part == "content"
    assert found.instruction == "RUN step 2"
    assert found.inside == ("inner" if form.startswith(("tar", "zip")) and "without" not in form else "")
    assert found.digest == json.loads(manifest_of(image))["layers"][1]["digest"]


def manifest_of(image: OciImage) -> bytes:
    return image.files["blobs/" + image.manifests[0]["digest"].replace(":", "/")]


PLACES: Mapping[str, tarfile.TarInfo] = {
    "name": member(f"srv/{VALUE.decode()}/file"),
    "link target": member("link", type=tarfile.SYMTYPE, linkname=VALUE.decode()),
    "owner": member("file", uname=VALUE.decode()),
    "attribute SCHILY.xattr.user.note": member(
        "file", pax_headers={"SCHILY.xattr.user.note": VALUE.decode()}
    ),
}


@pytest.mark.parametrize("part", PLACES)
def test_a_value_beside_the_content_is_found(part: str) -> None:
    """In a file's name, a link's target, an owner's name and an extended attribute."""
    found = only(scan(OciImage().add(layer((PLACES[part], b"")))))

    assert found.part == part
    assert found.layer == 1


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("before", [3, 90, 120, 200])
def test_a_value_in_a_long_name_is_found(before: int, format: int) -> None:
    """Also where the old format cuts the name into two fields, and where others write an extended header."""
    value = b"first-half/second-half-42"
    name = "d" * before + "/" + value.decode() + "/" + "e" * 60
    if format == tarfile.USTAR_FORMAT and before > 150:
        pytest.skip("the format cannot have such a name")
    report = scan(OciImage().add(layer((name, b"x"), format=format)), wanted(token=value))

    assert {each.secret for each in report.found} == {"token"}


def test_a_value_in_unused_bytes_of_a_layer_is_found() -> None:
    """In the padding after a file, in a header, and after the end of the archive."""
    data = bytearray(layer(("a", b"a"), ("b", b"b")))
    data[600 : 600 + len(VALUE)] = VALUE
    report = scan(OciImage().add(bytes(data) + VALUE))

    assert {each.part for each in report.found} == {"padding", "bytes after the end of the layer"}
    assert report.errors == []


CONFIGS: Mapping[str, Mapping[str, object]] = {
    "environment variable API_KEY": {"Env": ["PATH=/bin", f"API_KEY={VALUE.decode()}"]},
    "label note": {"Labels": {"note": VALUE.hex()}},
    "command": {"Cmd": ["serve", "--key", VALUE.decode()]},
    "config config.WorkingDir": {"WorkingDir": f"/srv/{VALUE.decode()}"},
}


@pytest.mark.parametrize("part", CONFIGS)
def test_a_value_in_the_config_is_found(part: str) -> None:
    """In an environment variable, a label, the command or anything else, encoded too."""
    found = only(scan(OciImage().add(layer(("a", b"a")), config=CONFIGS[part])))

    assert (found.part, found.layer) == (part, None)


def test_a_value_in_a_key_with_any_json_escapes_is_found() -> None:
    """A config is searched as JSON, not only as text."""
    escaped = "".join(f"\\u{ord(each):04x}" for each in VALUE.decode())
    image = OciImage().add(
        config={"Labels": {"REPLACED": "x"}},
        encode=lambda content: json.dumps(content).replace("REPLACED", escaped),
    )
    assert only(scan(image)).part == "label ***"


def test_a_value_in_history_and_annotations_is_found_and_masked() -> None:
    """The instruction that is shown has a mask in its place."""
    image = OciImage().add(
        layer(("a", b"a")),
        history=[f"RUN login --key {VALUE.decode()}"],
        annotations={"org.example.note": VALUE.decode()},
    )
    report = scan(image)

    assert {each.part for each in report.found} == {"history, entry 1", "annotation org.example.note"}
    assert "RUN login --key ***" in {each.instruction for each in report.found}


def test_an_environment_variable_names_its_instruction() -> None:
    """The last entry of the history that sets it."""
    image = OciImage().add(
        config={"Env": [f"API_KEY={VALUE.decode()}"]},
        history=["RUN a", f"ENV API_KEY={VALUE.decode()}", "RUN echo API_KEY"],
    )
    found = next(each for each in scan(image).found if each.part.startswith("environment"))

    assert found.instruction == "ENV API_KEY=***"


def test_a_file_that_a_later_layer_removes_or_overwrites_is_found() -> None:
    """Whoever has the image has all its layers."""
    image = OciImage().add(
        layer(("srv/removed", VALUE), ("srv/overwritten", VALUE)),
        layer(("srv/.wh.removed", b""), ("srv/overwritten", b"clean")),
    )
    assert [(each.layer, each.file) for each in scan(image).found] == [
        (1, "srv/overwritten"),
        (1, "srv/removed"),
    ]


def test_all_platforms_and_nested_indexes_are_searched() -> None:
    """A leak in one platform's image is found, and the finding names the platform."""
    image = OciImage().add(layer(("a", b"clean")), platform={"os": "linux", "architecture": "amd64"})
    image.add(layer(("b", VALUE)), platform={"os": "linux", "architecture": "s390x", "variant": "v9"})
    inner = json.dumps({"manifests": image.manifests}).encode()
    kind = "application/vnd.oci.image.index.v1+json"
    image.manifests = [image.blob(inner, kind, annotations={"org.opencontainers.image.ref.name": "app:2"})]

    found = only(scan(image))

    assert found.image == "app:2 (linux/s390x/v9)"


def test_an_image_that_is_listed_but_absent_is_noted() -> None:
    """As in an archive of one platform of an image for several."""
    image = OciImage().add(layer(("a", b"clean")))
    image.manifests.append(
        {"digest": "sha256:" + "0" * 64, "platform": {"os": "linux", "architecture": "arm64"}}
    )
    report = scan(image)

    assert report.is_clean
    assert any("linux/arm64" in note for note in report.notes)


def test_files_that_belong_to_no_image_are_searched() -> None:
    """Someone who copies the folder copies them, too."""
    image = OciImage().add(layer(("a", b"clean")))
    image.blob(gzip.compress(layer(("b", VALUE))), "")
    image.blob(b"\0not a layer " + VALUE, "")

    report = scan(image)

    assert len(report.found) == 2
    assert all(each.layer is None for each in report.found)


def test_an_archive_of_docker_and_a_folder_give_the_same_findings(tmp_path: Path) -> None:
    """Also if the archive is compressed as a whole."""
    layers = layer(("a", b"clean")), layer(("srv/b", VALUE))
    archive = docker_archive(*layers)
    folder = OciImage().add(*layers, annotations={"io.containerd.image.name": "app:latest"}).write(tmp_path)
    reports = [scan(archive), scan(gzip.compress(archive))]
    reports.append(scan_image(ImageSource.from_folder(folder), wanted(), target="app"))

    for report in reports:
        found = only(report)
        assert (found.layer, found.file, found.instruction) == (2, "srv/b", "RUN step 2")


# --- which secrets count


def test_every_secret_that_shares_a_value_is_named() -> None:
    """And an allowed one does not hide the other."""
    image = OciImage().add(layer(("a", b"see " + VALUE)))
    both = {"a_token": VALUE, "b_token": VALUE, "start": VALUE[:10]}

    assert {each.secret for each in scan(image, wanted(**both)).found} == {"a_token", "b_token", "start"}
    report = scan(image, wanted("a_token", **both))
    assert [each.secret for each in report.found] == ["b_token", "start"]
    assert [each.secret for each in report.accepted] == ["a_token"]


def test_each_version_of_a_secret_is_searched_for() -> None:
    """An older value may still be valid."""
    image = OciImage().add(layer(("a", VALUE)))
    report = scan(image, Wanted({"token": [SecretValue(OTHER), SecretValue(VALUE)]}))

    assert only(report).secret == "token"


@pytest.mark.parametrize("value", [b"password", b"1234567890", b"Localhost\n"])
def test_a_short_plain_word_or_number_is_a_warning(value: bytes) -> None:
    """It is in many images by chance."""
    report = scan(OciImage().add(layer(("a", b"the " + value.strip() + b" is"))), wanted(token=value))

    assert report.is_clean
    assert [each.secret for each in report.weak] == ["token"]


@pytest.mark.parametrize("value", [b"passw0rd", b"correcthorse", b"hunter-2", b"12345678901234"])
def test_a_longer_word_or_one_with_other_characters_is_found(value: bytes) -> None:
    """From twelve bytes on, or with letters and digits mixed."""
    assert only(scan(OciImage().add(layer(("a", value))), wanted(token=value))).secret == "token"


def test_ordinary_strings_of_a_json_value_are_warnings_and_others_are_found() -> None:
    """An account's address of its provider is in every client library; its key is not."""
    key = {
        "type": "service_account",
        "uri": "https://accounts.example.com/o/oauth2/auth",
        "key": "jK3-8sKq02Zm",
    }
    what = wanted(account=json.dumps(key).encode())
    client = OciImage().add(layer(("a", f'{key["type"]} "{key["uri"]}"'.encode())))
    leak = OciImage().add(layer(("a", key["key"].encode())))

    assert scan(client, what).is_clean and scan(client, what).weak
    assert only(scan(leak, what)).secret == "account"


def test_ordinary_lines_of_a_value_are_warnings_and_others_are_found() -> None:
    """The lines of a configuration file are in other files, too."""
    what = wanted(env=b"DEBUG: true\napiVersion: v1\nDB_PASSWORD=hunter2\n")

    assert scan(OciImage().add(layer(("a", b"DEBUG: true\napiVersion: v1"))), what).is_clean
    assert only(scan(OciImage().add(layer(("a", b"DB_PASSWORD=hunter2"))), what)).secret == "env"


def test_values_that_cannot_be_searched_for_are_named() -> None:
    """Short ones, white space, and repetitions of one character."""
    what = wanted(token=VALUE, short=b"1234567", blank=b" " * 20, zeros=b"0" * 30)
    report = scan(OciImage().add(layer(("a", b"0" * 100_000))), what)

    assert report.is_clean
    assert report.secrets == ("token",)
    assert set(report.ignored) == {"short", "blank", "zeros"}


@pytest.mark.parametrize("what", [Wanted({}), Wanted({"short": [SecretValue(b"1234567")]})])
def test_a_scan_for_nothing_is_refused(what: Wanted) -> None:
    """It would say "clean" without having searched."""
    with pytest.raises(UsageError, match="no value to search for"):
        scan(OciImage().add(layer(("a", b"a"))), what)


def test_an_unknown_secret_cannot_be_allowed() -> None:
    """It is a typing error."""
    with pytest.raises(UsageError, match="tokne"):
        scan(OciImage().add(layer(("a", b"a"))), wanted("tokne", token=VALUE))


def test_a_clean_image_reports_what_was_searched() -> None:
    """Layers, files, bytes and secrets."""
    layers = layer(("a", b"a" * 1_000)), layer(("b", b"b"), ("c", b""))
    report = scan(OciImage().add(*layers))

    assert report.is_clean
    assert (report.layers, report.files, report.size) == (2, 3, sum(map(len, layers)))
    assert report.secrets == ("token",)


# --- properties

PACKINGS = st.sampled_from(["", "+gzip", "+zstd"])
VALUES = st.one_of(
    st.binary(min_size=12, max_size=200).filter(lambda value: len(set(value)) > 4),
    st.text('abcXYZ019-_/+=%\n"\\ é', min_size=12, max_size=200)
    .map(str.encode)
    .filter(lambda value: len(set(value)) > 4 and not value.decode().isspace()),
)
ENCODERS: Mapping[str, Callable[[bytes], bytes]] = {
    "plain": lambda value: value,
    "base64": base64.b64encode,
    "shifted": lambda value: base64.b64encode(b"?" + value + b"!"),
    "folded": lambda value: base64.encodebytes(value),
    "hex": lambda value: value.hex().encode(),
    "URL": lambda value: quote(value, safe="").encode(),
}


@pytest.mark.slow
@given(
    value=VALUES,
    form=st.sampled_from(sorted(ENCODERS)),
    before=st.integers(0, 3_000),
    after=st.integers(0, 600),
    chunk=st.integers(1, 700),
    packing=PACKINGS,
)
def test_a_value_is_found_wherever_it_is_and_however_the_stream_is_cut(
    value: bytes, form: str, before: int, after: int, chunk: int, packing: str
) -> None:
    """At any offset of a file, in any form, whatever the sizes of the chunks."""
    content = b"." * before + ENCODERS[form](value) + b"." * after
    data = layer(("x", b"x"), ("leak", content), ("y", b"y"))
    image = OciImage().add(data, packing=packing)
    report = scan_image(
        ImageSource.from_archive(pieces(image.archive(), chunk)), wanted(token=value), target="app"
    )

    assert report.errors == []
    assert {(each.secret, each.file, each.part) for each in (*report.found, *report.weak)} == {
        ("token", "leak", "content")
    }


@given(data=st.binary(min_size=1, max_size=3_000), chunk=st.integers(1, 600))
def test_an_archive_of_any_bytes_is_an_error(data: bytes, chunk: int) -> None:
    """Never a crash."""
    with pytest.raises(ImageUnreadable):
        scan(data, chunk=chunk)


@given(data=st.binary(min_size=1, max_size=3_000), chunk=st.integers(1, 600))
def test_a_layer_of_any_bytes_is_an_error(data: bytes, chunk: int) -> None:
    """Never a crash, and never clean."""
    image = OciImage().add(layer(("a", b"a")))
    manifest = json.loads(manifest_of(image))
    manifest["layers"] = [image.blob(data, "application/vnd.oci.image.layer.v1.tar")]
    image.manifests = [image.blob(json.dumps(manifest).encode(), "")]

    assert "layer 1 of 1" in scan(image, chunk=chunk).errors[0]


@given(st.data())
def test_a_damaged_layer_is_never_clean(data: st.DataObject) -> None:
    """Wherever it is cut, or a byte of it changed; even if the digests were adapted."""
    content = layer(("a", random.Random(1).randbytes(2_000)), ("b", b"b" * 700))
    packing = data.draw(PACKINGS)
    image = OciImage().add(content, packing=packing)
    descriptor = json.loads(manifest_of(image))["layers"][0]
    name = "blobs/" + descriptor["digest"].replace(":", "/")
    packed = bytearray(image.files[name])
    at = data.draw(st.integers(0, len(packed) - 1))
    if data.draw(st.booleans()):
        del packed[at:]
    else:
        packed[at] ^= 1 << data.draw(st.integers(0, 7))
    image.files[name] = bytes(packed)

    report = scan(image)

    assert not report.is_clean
    assert all("layer 1 of 1" in error for error in report.errors)
