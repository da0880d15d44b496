"""Masking: no pattern of a value gets through, whole or in a stream, and nothing else is changed."""

from __future__ import annotations

import base64
import itertools
import json
import re
import shlex
import threading
import time
import urllib.parse
from collections.abc import Callable
from http.cookies import SimpleCookie

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from starlette.responses import RedirectResponse

from gusset.secrets.fragments import GRAM, MIN_PART, fragments_of, grams_of
from gusset.secrets.hits import Hit
from gusset.secrets.masking import Masker, maskable
from gusset.secrets.patterns import patterns_of, texts_of
from gusset.secrets.value import SecretValue

TOKEN = b"hf_Zm9vYmFyQmF6cXV4'\"/+ 1"
PEM = b"-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG9w0B\nAQEFAASCBKcwggSj\n-----END PRIVATE KEY-----\n"

ENCODERS = {
    "raw": lambda v: v,
    "base64": base64.b64encode,
    "base64 without padding": lambda v: base64.b64encode(v).rstrip(b"="),
    "base64, URL-safe": base64.urlsafe_b64encode,
    "hex": lambda v: v.hex().encode(),
    "HEX": lambda v: v.hex().upper().encode(),
    "URL, quote": lambda v: urllib.parse.quote(v).encode(),
    "URL, quote_plus": lambda v: urllib.parse.quote_plus(v).encode(),
    "URL, slashes too": lambda v: urllib.parse.quote(v, safe="").encode(),
    "URL, small digits": lambda v: re.sub(r"%..", lambda m: m[0].lower(), urllib.parse.quote(v)).encode(),
    "repr of bytes": lambda v: repr(v)[2:-1].encode(),
}
TEXT_ENCODERS = {
    "repr": lambda v: repr(v.decode())[1:-1].encode(),
    "JSON, ASCII": lambda v: json.dumps(v.decode())[1:-1].encode(),
    "JSON, UTF-8": lambda v: json.dumps(v.decode(), ensure_ascii=False)[1:-1].encode(),
    "shell": lambda v: shlex.quote(v.decode()).encode(),
    "cookie": lambda v: re.sub('^"(.*)"$', r"\1", SimpleCookie({"a": v.decode()})["a"].coded_value).encode(),
    "Location": lambda v: RedirectResponse(v.decode()).headers["location"].encode(),
    "shell, other way": lambda v: v.replace(b"'", rb"'\''"),
}

values = st.binary(min_size=8, max_size=40)
texts = st.text(min_size=8, max_size=30).map(str.encode)


def masker(*secrets: bytes) -> Masker:
    return Masker([SecretValue(secret) for secret in secrets])


def streamed(of: Masker, chunks: list[bytes]) -> bytes:
    stream = of.stream()
    return b"".join([*map(stream.feed, chunks), stream.flush()])


def cut(data: bytes, offsets: list[int]) -> list[bytes]:
    edges = [0, *sorted(offset % (len(data) + 1) for offset in offsets), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges)]


@pytest.mark.parametrize(
    "encode", [*ENCODERS.values(), *TEXT_ENCODERS.values()], ids=[*ENCODERS, *TEXT_ENCODERS]
)
def test_every_common_encoding_of_a_value_is_masked(encode):
    """A value in any encoding that output commonly has becomes `***`."""
    out = masker(TOKEN).mask(b"token=<" + encode(TOKEN) + b">")
    assert out in (b"token=<***>", b"token=<'***'>")


@pytest.mark.parametrize("before", [b"", b"u", b"us", b"usr", b"user:"])
@pytest.mark.parametrize("alphabet", [base64.b64encode, base64.urlsafe_b64encode])
def test_base64_is_masked_at_all_alignments(before, alphabet):
    """Basic authentication encodes name and token together; no stable part of the token remains."""
    inner = bytes(range(250, 256)) + b"secret-token-1234"
    out = masker(inner).mask(alphabet(before + inner + b"\n tail of it"))
    assert b"***" in out
    for start in range(9):
        assert base64.b64encode(inner[start : start + 9])[2:-2] not in out


def test_lines_of_a_value_are_masked_one_by_one_except_pem_headers():
    """A key printed line by line is masked. The BEGIN line, which all keys share, stays."""
    secret = masker(PEM)
    assert secret.mask(b"| MIIEvQIBADANBgkqhkiG9w0B |") == b"| *** |"
    assert secret.mask(b"-----BEGIN PRIVATE KEY-----\nother") == b"-----BEGIN PRIVATE KEY-----\nother"
    assert secret.mask(b"key:\n" + PEM + b"end") == b"key:\n***end"


def test_strings_in_a_json_value_are_masked_but_not_its_keys():
    """Code parses a JSON credential; each string of 8 bytes or more is masked wherever it appears."""
    leaf = 'p\u00e4ss"word\nline'
    secret = masker(
        json.dumps({"private_key_id": leaf, "list": [{"deep": "deep-value"}], "n": 12345678}).encode()
    )
    assert secret.mask(leaf.encode() + b" deep-value") == b"*** ***"
    assert secret.mask(b"private_key_id 12345678") == b"private_key_id 12345678"


def test_the_password_in_a_url_is_masked():
    """A database's client prints the password from the URL, decoded or not."""
    secret = masker(b"postgresql://app:pa%24%24word-1@db.internal:5432/main")
    assert secret.mask(b"app pa$$word-1 pa%24%24word-1 db.internal") == b"app *** *** db.internal"


def test_both_strings_of_a_repeated_json_key_are_masked():
    """JSON parsers keep only the last one."""
    assert masker(b'{"a": "first-one", "a": "second-one"}').mask(b"first-one second-one") == b"*** ***"


def test_a_value_is_masked_without_its_surrounding_white_space():
    """A trailing newline in the stored value does not hide what code prints after .strip()."""
    assert masker(b" token-1234\n").mask(base64.b64encode(b"token-1234")) == b"***"


HTML_SAFE = b"p<w>&\"'\\ \xe2\x80\xa8 one"


def go_json(value: bytes) -> bytes:
    """As Go's encoding/json writes a string, without the quotes."""
    text = json.dumps(value.decode(), ensure_ascii=False)[1:-1]
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text.encode()


@pytest.mark.parametrize(
    "encode",
    [
        go_json,
        lambda v: go_json(v).replace(b"'", rb"\u0027"),
        lambda v: json.dumps(json.dumps(v.decode())).encode(),
        lambda v: json.dumps(repr(v.decode())).encode(),
        lambda v: json.dumps(repr({"k": v.decode()})).encode(),
        lambda v: json.dumps(repr(v)).encode(),
        lambda v: repr(json.dumps(v.decode())).encode(),
        lambda v: json.dumps(go_json(v).decode()).encode(),
        lambda v: b'metric{label="%b"}' % v.replace(b"\\", rb"\\").replace(b'"', rb"\""),
    ],
    ids=[
        "Go",
        "HTML",
        "JSON twice",
        "repr, JSON",
        "dict, JSON",
        "bytes, JSON",
        "JSON, repr",
        "Go, JSON",
        "label",
    ],
)
def test_escapes_of_html_and_escapes_of_escapes_are_masked(encode):
    """Go and web frameworks escape <, > and &; a log of a repr in JSON escapes twice."""
    out = masker(HTML_SAFE).mask(b"<" + encode(HTML_SAFE) + b">")
    assert b"***" in out
    assert b"one" not in out
    assert b"p" not in out.partition(b"***")[0].replace(b"metric", b"").replace(b"'k'", b"")


@pytest.mark.parametrize("columns", [64, 76])
@pytest.mark.parametrize("newline", [b"\n", b"\r\n", b"\nlog: "])
def test_folded_base64_is_masked(columns, newline):
    """`base64 FILE`, `encodebytes` and PEM fold it into lines; a log may print each with a prefix."""
    secret = b"an ordinary sentence of a secret, which has no random part but is long enough " * 3
    encoded = base64.b64encode(secret)
    lines = [encoded[start : start + columns] for start in range(0, len(encoded), columns)]
    out = masker(secret).mask(newline.join(lines) + b"\n")
    assert out.replace(b"log: ", b"").replace(b"\r", b"").replace(b"\n", b"").strip(b"*") in (
        b"",
        lines[-1][:15],
    )
    if b"log" not in newline:
        assert out == b"***\n"


def test_folded_base64_of_a_file_with_a_final_newline_is_masked():
    """The stored value often lacks the newline that the file has."""
    secret = b"another ordinary sentence that is a secret, and is long enough to be folded"
    assert masker(secret).mask(base64.encodebytes(secret + b"\n")) == b"***Cg==\n"


def test_values_under_8_bytes_are_not_masked():
    """They would mask other text; callers report them instead."""
    assert not maskable(SecretValue(b"1234567"))
    assert masker(b"1234567").mask(b"1234567") == b"1234567"
    assert not maskable(SecretValue(b" " * 20))
    assert maskable(SecretValue(b"1234567\n"))
    assert masker(b"1234567\n").mask(b"<1234567\n>") == b"<***>"


def test_blank_lines_and_rows_of_dashes_in_a_value_are_not_masked_elsewhere():
    """Any output contains indentation and rows of dashes."""
    secret = masker(b"first-line-1\n            \n------------\nlast-line-22\n")
    assert secret.mask(b"            x ------------") == b"            x ------------"
    assert secret.mask(b"last-line-22") == b"***"


def test_overlapping_values_are_masked_completely():
    """When the end of one value is the start of another, both are masked to their ends."""
    assert masker(b"abcdefgh1234", b"1234zyxwvuts").mask(b"<abcdefgh1234zyxwvuts>") == b"<***>"


def test_data_without_a_value_is_not_copied():
    """The common case returns the same object."""
    data = b"nothing of interest\n"
    assert masker(TOKEN).mask(data) is data
    assert masker(TOKEN).stream().feed(data) is data


def test_replaced_values_stay_masked():
    """After a rotation both values are masked, also in streams that were opened before."""
    secret = masker(b"old-value-1")
    stream = secret.stream()
    secret.learn([SecretValue(b"new-value-2")])
    assert stream.feed(b"old-value-1 new-value-2\n") == b"*** ***\n"


def test_threads_can_mask_while_another_learns():
    """They never see an incomplete state."""
    secret = masker(b"first-value-0")
    learner = threading.Thread(
        target=lambda: [secret.learn([SecretValue(b"later-value-%d" % i)]) for i in range(50)]
    )
    learner.start()
    while learner.is_alive():
        assert secret.mask(b"x first-value-0") == b"x ***"
    learner.join()
    assert secret.mask(b"later-value-49") == b"***"


def test_text_with_lone_surrogates_is_masked():
    """Tracebacks and JSON can contain them; the rest of the text is unchanged."""
    assert masker(b"caf\xc3\xa9-secret").mask_text("x\udcff caf\u00e9-secret") == "x\udcff ***"
    assert masker(b"caf\xc3\xa9-secret").mask_text("\ud800caf\u00e9-secret").endswith("***")
    assert masker(b"\xff\xfe\xfd\xfc1234").mask_text("a \udcff\udcfe\udcfd\udcfc1234") == "a ***"


def test_complete_lines_are_passed_on_at_once():
    """Nothing of a complete line waits, and of an incomplete one only what may start a value."""
    stream = masker(b"hf_abcdefgh").stream()
    assert stream.feed(b"done\n") == b"done\n"
    assert stream.feed(b"ends with hf_\n") == b"ends with hf_\n"
    assert stream.feed(b"Name: ") == b"Name: "
    assert not stream.holding
    assert stream.feed(b"token hf_ab") == b"token "
    assert stream.holding
    assert stream.feed(b"cdefgh\n") == b"***\n"


def test_the_rest_of_a_value_is_masked_after_a_flush():
    """The start cannot be taken back, but the bytes that follow are masked."""
    stream = masker(b"hf_abcdefgh").stream()
    assert stream.feed(b"hf_abc") == b""
    assert stream.flush() == b"hf_abc"
    assert not stream.holding
    assert stream.feed(b"defgh, next\n") == b"***, next\n"


def test_a_flush_masks_a_value_that_may_be_the_start_of_a_longer_one():
    """A value at the end of the data that is also the start of another is masked."""
    stream = masker(b"abcdefgh", b"abcdefgh-longer").stream()
    assert stream.feed(b"abcdefgh") == b""
    assert stream.flush() == b"***"
    assert stream.feed(b" and on\n") == b" and on\n"


def test_a_run_of_overlapping_values_becomes_one_mask():
    """Nothing accumulates in a text of overlapping values, however long it is."""
    stream = masker(b"=" * 10).stream()
    assert stream.feed(b"<" + b"=" * 50) == b"<***"
    assert not stream.holding
    assert stream.feed(b"=" * 50) == b""
    assert stream.feed(b"=>\n") == b">\n"


def test_a_value_of_several_lines_is_masked_across_chunks():
    """The first line of a key at the end of a chunk is held back until the next chunk."""
    assert streamed(masker(PEM), [b"key:\n" + PEM[:30], PEM[30:60], PEM[60:] + b"\n"]) == b"key:\n***\n"


def test_the_longest_possible_values_are_masked():
    """In all encodings, and in chunks of any size."""
    big = bytes(range(256)) * 256
    data = b"<" + base64.b64encode(big) + b"><" + big + b">"
    chunks = [data[i : i + 4096] for i in range(0, len(data), 4096)]
    assert streamed(masker(big), chunks) == b"<***><***>"


@given(st.lists(values, min_size=1, max_size=3), st.data())
def test_no_pattern_gets_through_a_stream(secrets, data):
    """Whatever the values, their patterns, the text around and the cuts, the output contains no pattern.

    Except that of a value whose first line is shorter than 8 bytes: see docs/masking.md.
    """
    assume(not any(b"\n" in form[:8] for secret in secrets for form in patterns_of(secret)))
    encoders = st.sampled_from(list(ENCODERS.values()))
    embedded = st.builds(lambda encode, v: encode(v), encoders, st.sampled_from(secrets))
    whole = b"".join(data.draw(st.lists(st.one_of(st.binary(max_size=12), embedded), max_size=8)))
    masking = masker(*secrets)
    out = streamed(masking, cut(whole, data.draw(st.lists(st.integers(0, 10_000), max_size=8))))
    chunks = out.split(b"***")
    assert not any(form in piece for secret in secrets for form in patterns_of(secret) for piece in chunks)


def masked_slowly(data: bytes, secrets: list[bytes]) -> bytes:
    """A plain implementation of masking: all matches of all patterns, merged where they overlap."""
    found = sorted(
        (place, place + len(form))
        for form in set().union(*map(patterns_of, secrets))
        for place in range(len(data))
        if data.startswith(form, place)
    )
    out, end = b"", 0
    for start, stop in found:
        if start >= end:
            out += data[end:start] + b"***"
        end = max(end, stop)
    return out + data[end:]


few_letters = st.text("ab-'", min_size=8, max_size=12).map(str.encode)


@pytest.mark.slow
@settings(max_examples=300)
@given(st.lists(few_letters, min_size=1, max_size=3), st.data())
def test_the_result_does_not_depend_on_where_a_stream_is_cut(secrets, data):
    """Whole or in chunks, all patterns and nothing else are masked, however they overlap."""
    some_form = st.sampled_from(sorted(set().union(*map(patterns_of, secrets))))
    begun = st.builds(lambda form, size: form[:size], some_form, st.integers(1, 12))
    ended = st.builds(lambda form, size: form[size:], some_form, st.integers(1, 6))
    whole = b"".join(data.draw(st.lists(st.one_of(some_form, begun, ended, st.just(b"\n")), max_size=8)))
    masking, expected = masker(*secrets), masked_slowly(whole, secrets)
    places = data.draw(st.lists(st.integers(0, 1_000), max_size=10))
    assert masking.mask(whole) == expected
    assert streamed(masking, cut(whole, places)) == expected
    assert streamed(masking, [bytes([byte]) for byte in whole]) == expected


@pytest.mark.slow
@given(st.lists(few_letters, min_size=1, max_size=3), st.data())
def test_a_flush_loses_and_repeats_no_bytes(secrets, data):
    """Wherever a stream is flushed, the unmasked output has each byte once and in order."""
    some_form = st.sampled_from(sorted(set().union(*map(patterns_of, secrets))))
    whole = b"".join(
        data.draw(st.lists(st.one_of(some_form, st.sampled_from([b"a", b"\n", b"b-"])), max_size=8))
    )
    stream, out = masker(*secrets).stream(), b""
    for piece in cut(whole, data.draw(st.lists(st.integers(0, 1_000), max_size=10))):
        out += stream.feed(piece)
        if data.draw(st.booleans()):
            out += stream.flush()
            assert not stream.holding
    out += stream.flush()
    pattern = b".+".join(re.escape(clear) for clear in out.split(b"***"))
    assert re.fullmatch(pattern, whole, re.DOTALL)


@given(texts, st.sampled_from(list(TEXT_ENCODERS.values())))
def test_any_text_value_is_masked_in_its_encodings(secret, encode):
    """Every text value is found in JSON, in repr and in shell words."""
    assert encode(secret).strip(b"'") not in masker(secret).mask(b"<" + encode(secret) + b">")


@given(st.binary(max_size=200))
def test_text_without_secrets_is_unchanged(data):
    """A masker without values changes nothing."""
    assert masker().mask(data) is data
    assert streamed(masker(), [data]) == data


KEY = b"sk-proj-" + b"Q7vR2mXc9TzL4bKp8WnHs3dYf6GjEa1U5oIiZr0eNqBuVtMw"
PARTIAL = {
    "plain": lambda v: v,
    "base64": base64.b64encode,
    "base64 in a longer text": lambda v: base64.b64encode(b"user:" + v),
    "base64, URL-safe": lambda v: base64.urlsafe_b64encode(b"?" + v),
    "hex": lambda v: v.hex().encode(),
    "HEX": lambda v: v.hex().upper().encode(),
}


def test_what_libraries_abbreviate_is_masked():
    """An error message that shows most of a key shows none of it."""
    assert masker(KEY).mask(b"Incorrect API key: '" + KEY[:20] + b"..." + KEY[-4:] + b"'") == (
        b"Incorrect API key: '***..." + KEY[-4:] + b"'"
    )


@pytest.mark.parametrize("encode", PARTIAL.values(), ids=PARTIAL)
def test_every_part_of_12_bytes_is_masked(encode):
    """Any part of a random value, as it is or encoded, wherever it begins and ends."""
    whole, secret = encode(KEY).rstrip(b"="), masker(KEY)
    stable = slice(8, -2) if encode is not PARTIAL["plain"] else slice(None)  # within base64's shared edges
    text = whole[stable]
    for start in range(len(text) - 11):
        for size in (12, 13, 19, 40):
            part = text[start : start + size]
            if len(part) >= 12:
                assert secret.mask(b"<" + part + b">") == b"<***>", part


def test_parts_under_12_bytes_are_not_masked():
    """They could be part of ordinary text."""
    assert masker(KEY).mask(KEY[10:21]) == KEY[10:21]


ORDINARY = (
    b"projects/my-company-prod/locations/europe-west1/keyRings/main",
    b"correct-horse-battery-staple-with-many-words",
    b"arn:aws:iam::123456789012:role/MyServiceRoleForAllDeployments/ProductionWorkers2",
    b"projects/my-company/locations/eu/serviceAccounts/modelServing/keyRings",
    b"https://hooks.example.com/services/notifications/incoming/messages",
    b"production-database-password-2026",
    b'{"auth_provider_x509_cert_url": "https://www.example.com/oauth2/v1/certs", "client_email_address_of_it": 1}',
    b"-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQ==\n-----END PRIVATE KEY-----",
    b"eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJhIjoxfQ.c2ln",
)


@pytest.mark.parametrize("value", ORDINARY)
def test_parts_that_are_ordinary_text_are_not_masked(value):
    """Words of a path or passphrase, keys of JSON and what all PEM keys and JWTs share appear in any output."""
    secret = masker(value)
    for start in range(len(value) - 24):
        part = value[start : start + 24]
        if b"www" not in part and value[:1] != b"{":
            assert secret.mask(b"x" + part[:-1] + b"x") == b"x" + part[:-1] + b"x"
    assert secret.mask(b"auth_provider_x509_cert_url MIIEvQIBADANBgkqhkiG9w0BAQEFAAS") == (
        b"auth_provider_x509_cert_url MIIEvQIBADANBgkqhkiG9w0BAQEFAAS"
    )


FEW_CHARACTERS = (  # random ones that show 3.1 to 3.4 bits for each character
    b"701ed40c-eb01-47dd-b4ad-99794ae0d0b1",
    b"123989BE-28B6-49AE-A742-B7442798AAB4",
    b"beadface-dead-4bad-8fab-0123456789ab",
    b"AKIAEASHAJHGVSJXG5DS",
    b"sxlynwwy7zzziwwc1irs",
)


@pytest.mark.parametrize("value", FEW_CHARACTERS)
def test_parts_of_credentials_with_few_different_characters_are_masked(value: bytes) -> None:
    """UUIDs, and keys of letters of one case and digits: a short one shows less than 3.5 bits a character."""
    secret = masker(value)
    for start in range(len(value) - 11):
        assert secret.mask(b"<" + value[start : start + 12] + b">") == b"<***>"


@pytest.mark.parametrize(
    ("value", "ordinary"),
    [
        (b"202601311259591234567890", b"at 20260131125959 and 2026-01-31 12:59:59, no. 1234567890"),
        (b"123456789012345678901234", b"account 123456789012, phone 4567890123456"),
        (b"c232ab00-9414-11ec-b3c8-9f6bdeced846", b"another: 7a1b2c3d-9414-11ec-b3c8-9f6bdeced846"),
        (b"701ed40c-eb01-47dd-b4ad-99794ae0d0b1", b"another: 701ed40c-e1f2-47dd-8e1f-2f6a9d3b7c59"),
        (b"AKIAEASHAJHGVSJXG5DS", b"AKIAIOSFODNN7EXAMPLE, AKIA and ASIA"),
    ],
)
def test_dates_numbers_and_other_ids_are_not_masked(value: bytes, ordinary: bytes) -> None:
    """Parts of a number appear in dates; the UUIDs that one machine makes from the time end alike."""
    assert masker(value).mask(ordinary) == ordinary
    assert masker(value).mask(b"<" + value + b">") == b"<***>"


def parts_masked_slowly(data: bytes, patterns: set[bytes]) -> bytes:
    """All patterns, and all substrings of 12 bytes of KEY."""
    covered = bytearray(len(data))
    texts = {*patterns, *(KEY[at : at + 12] for at in range(len(KEY) - 11))}
    for text in texts:
        start = data.find(text)
        while start >= 0:
            covered[start : start + len(text)] = b"\1" * len(text)
            start = data.find(text, start + 1)
    return re.sub(rb"\x00+|\x01+", lambda m: b"***" if m[0][0] else data[m.start() : m.end()], bytes(covered))


@pytest.mark.slow
@settings(max_examples=200)
@given(st.data())
def test_parts_are_masked_wherever_a_stream_is_cut(data):
    """Whole or in chunks, byte by byte too, the same is masked as by a plain search for all parts."""
    bounds = st.tuples(st.integers(0, len(KEY)), st.integers(0, 30))
    parts = st.builds(lambda b: KEY[b[0] : b[0] + b[1]], bounds)
    other = st.sampled_from([b" ", b"\n", b"sk-", b"Q7", b"'", b"x"])
    whole = b"".join(data.draw(st.lists(st.one_of(parts, other), max_size=8)))
    expected = parts_masked_slowly(whole, set(patterns_of(KEY)))
    masking = masker(KEY)
    places = data.draw(st.lists(st.integers(0, 1_000), max_size=10))
    found = re.sub(rb"(\*\*\*)+", b"***", masking.mask(whole))
    assert found == re.sub(rb"(\*\*\*)+", b"***", expected)
    assert re.sub(rb"(\*\*\*)+", b"***", streamed(masking, cut(whole, places))) == found
    assert re.sub(rb"(\*\*\*)+", b"***", streamed(masking, [bytes([b]) for b in whole])) == found


def needles_of(*secrets: bytes) -> set[bytes]:
    """All that is masked for the sake of these values: patterns, and parts around each gram."""
    needles = set().union(*map(patterns_of, secrets))
    for text in (text for secret in secrets for part in texts_of(secret) for text in fragments_of(part)):
        for place, _ in grams_of(text):
            for start in range(max(0, place - 4), place + 1):
                ends = range(max(start + MIN_PART, place + GRAM), min(len(text), place + GRAM + MIN_PART) + 1)
                needles |= {text[start:end] for end in ends}
    return needles


def needles_masked_slowly(data: bytes, needles: set[bytes]) -> bytes:
    covered = bytearray(len(data))
    for needle in needles:
        start = data.find(needle)
        while start >= 0:
            covered[start : start + len(needle)] = b"\1" * len(needle)
            start = data.find(needle, start + 1)
    return re.sub(rb"\x00+|\x01+", lambda m: b"***" if m[0][0] else data[m.start() : m.end()], bytes(covered))


def with_one_mask(out: bytes) -> bytes:
    """Spans that touch are masked together in a stream, one by one as a whole."""
    return re.sub(rb"(\*\*\*)+", b"***", out)


credentials = st.sampled_from(
    [KEY, KEY[:14] + KEY[30:], KEY[20:44], b"q9ZtB3xK7wPmR2vC5nYs", b"\x00\xff\x01" + KEY[9:20], TOKEN]
)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.one_of(credentials, few_letters), min_size=1, max_size=3),
    st.one_of(credentials, few_letters),
    st.data(),
)
def test_both_searches_mask_the_same_as_a_plain_one(secrets, rotated, data):
    """Whatever the values, encoded or in parts, overlapping, cut anywhere, and rotated while a stream is open."""

    def draw(known: list[bytes]) -> bytes:
        form = st.one_of([st.sampled_from(sorted(patterns_of(each))) for each in known])
        bounds = st.tuples(st.integers(0, 40), st.integers(1, 40))
        part = st.builds(lambda text, at: text[at[0] : at[0] + at[1]], form, bounds)
        glue = st.sampled_from([b"", b" ", b"\n", b"a", b"7", b"-"])
        pieces = st.lists(st.builds(lambda a, b: a + b, st.one_of(form, part), glue), max_size=6)
        return b"".join(data.draw(pieces))

    before, after = draw(secrets) + b" \n", draw([*secrets, rotated])
    expected = needles_masked_slowly(before, needles_of(*secrets))
    expected += needles_masked_slowly(after, needles_of(*secrets, rotated))
    cuts = st.lists(st.integers(0, 1_000), max_size=8)
    chunks_before, chunks_after = cut(before, data.draw(cuts)), cut(after, data.draw(cuts))
    outputs = []
    for search in ("automaton", "hyperscan"):
        masking = masker(*secrets)
        assert search == "automaton" or masking._index.search.compile()
        stream = masking.stream()
        out = [stream.feed(chunk) for chunk in chunks_before]
        masking.learn([SecretValue(rotated)])
        assert search == "automaton" or masking._index.search.compile()
        out += [stream.feed(chunk) for chunk in chunks_after]
        out += [stream.flush(), b"|", masking.mask(after)]
        outputs.append(out)
    assert outputs[0] == outputs[1], "also in which bytes are held back"
    streamed_out, whole = b"".join(outputs[0][:-2]), outputs[0][-1]
    assert with_one_mask(streamed_out) == with_one_mask(expected)
    assert with_one_mask(whole) == with_one_mask(needles_masked_slowly(after, needles_of(*secrets, rotated)))


def test_a_long_part_does_not_accumulate_in_a_stream():
    """A part of a long value that arrives in small pieces is masked at once, and little of it is kept."""
    long = base64.b64encode(bytes(range(256)) * 12)
    stream = masker(long).stream()
    assert stream.feed(b"see " + long[100:1000]) == b"see ***"
    assert not stream.holding
    assert stream.feed(long[1000:2000]) == b""
    assert stream.feed(b" end\n") == b" end\n"


LETTERS = {
    "one letter": (b"a" * 65_536, lambda size: b"a" * size),
    "one letter, broken": (b"a" * 65_536, lambda size: (b"a" * 65_535 + b"b") * (size // 65_536)),
    "two letters": (b"ab" * 32_768, lambda size: b"ab" * (size // 2)),
    "random, repeated": (KEY * 1_100, lambda size: KEY * (size // len(KEY))),
    "random, repeated, broken": (KEY * 1_100, lambda size: (KEY * 9 + b"!") * (size // len(KEY) // 9)),
    "letters, then random": (b"a" * 30_000 + KEY * 500, lambda size: b"a" * size),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", LETTERS)
@pytest.mark.parametrize("chunk", [pytest.param(0, marks=pytest.mark.matrix), 4_096])
def test_time_grows_with_the_length_of_the_input(case, chunk):
    """The worst values and texts: four times the text takes about four times as long, not sixteen."""
    value, text = LETTERS[case]
    masking = masker(value[:65_536])

    def seconds(size: int) -> float:
        data = text(size)
        pieces = [data[i : i + chunk] for i in range(0, len(data), chunk)] if chunk else [data]
        begin = time.process_time()
        streamed(masking, pieces)
        return time.process_time() - begin

    small = min(seconds(70_000) for _ in range(3))
    assert min(seconds(280_000) for _ in range(2)) < 9 * small + 0.05


def test_a_long_value_that_arrives_byte_by_byte_is_compared_once():
    """What is held is not compared from its start for each byte that comes."""
    value = base64.b64encode(bytes(range(256)) * 180)[:60_000]
    stream = masker(value).stream()
    begin = time.process_time()
    for number in range(20_000):
        assert stream.feed(value[number : number + 1]) == b"" or number < 8
    first = time.process_time() - begin
    begin = time.process_time()
    for number in range(20_000, 40_000):
        assert stream.feed(value[number : number + 1]) == b""
    assert time.process_time() - begin < 3 * first + 0.05
    assert stream.feed(value[40_000:]) + stream.flush() == b"***"


def test_hits_are_counted_by_secret_form_and_channel():
    """Each mask counts once, also one that a stream returned in pieces."""
    masking = Masker({"token": SecretValue(KEY), "word": SecretValue(b"correct-horse")})
    masking.mask(b"a " + KEY + b" b " + base64.b64encode(KEY), "log")
    stream = masking.stream("stdout")
    for byte in b"x correct-horse y " + KEY[5:30] + b"\n":
        stream.feed(bytes([byte]))
    stream.flush()
    expected = {
        Hit("token", "plain", "log"): 1,
        Hit("token", "base64", "log"): 1,
        Hit("word", "plain", "stdout"): 1,
        Hit("token", "part", "stdout"): 1,
    }
    assert masking.hits.take() == expected
    assert masking.hits.take() == {}
    assert masking.hits.total == expected


@pytest.mark.parametrize("encode", [ascii, lambda v: v.encode("ascii", "backslashreplace").decode(), str])
def test_a_value_with_other_letters_than_ascii_is_masked_as_escapes(encode: Callable[[str], str]) -> None:
    """As `ascii` shows it, and as a stream writes it that can only encode ASCII; also in Latin-1."""
    value = "Grüße-geheim-42"
    masker = Masker({"a": SecretValue(value.encode())})
    shown = masker.mask_text(f"it is {encode(value)}!")
    assert "geheim" not in shown and shown.startswith("it is ") and shown.endswith("!")
    assert b"geheim" not in masker.mask(b"raw " + value.encode("latin-1"))


@pytest.mark.parametrize("kind", ["ed25519", "ec"])
def test_the_start_of_a_short_private_key_in_pem_is_masked(kind: str) -> None:
    """Its secret part begins after few characters, other than in a key of RSA."""
    key = Ed25519PrivateKey.generate() if kind == "ed25519" else ec.generate_private_key(ec.SECP256R1())
    form = PrivateFormat.PKCS8 if kind == "ed25519" else PrivateFormat.TraditionalOpenSSL
    pem = key.private_bytes(Encoding.PEM, form, NoEncryption())
    body = b"".join(pem.splitlines()[1:-1])
    masker = Masker({"key": SecretValue(pem)})
    assert body[24:60] not in masker.mask(b"bad key " + body[:60] + b"...")


def test_forgotten_values_are_masked_no_more() -> None:
    """Also in a stream that is open, and with parts that a forgotten value shares with a retained one."""
    old, new = b"shared-Zq8LmN4pXw2Rt6Yk-0001", b"shared-Zq8LmN4pXw2Rt6Yk-0002"
    masker = Masker({"a": SecretValue(old), "b": SecretValue(new), "c": SecretValue(TOKEN)})
    stream = masker.stream()
    assert stream.feed(old + b"\n") == b"***\n"

    masker.forget([SecretValue(old), SecretValue(TOKEN)])

    assert stream.feed(new + b"\n") == b"***\n"
    assert stream.feed(TOKEN + b"\n") == TOKEN + b"\n"
    assert masker.mask(base64.b64encode(new)) == b"***"
    assert masker.mask(base64.b64encode(TOKEN)) == base64.b64encode(TOKEN)
    masker.learn({"c": SecretValue(TOKEN)})
    assert stream.feed(TOKEN + b"\n") == b"***\n"
