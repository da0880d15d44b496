"""The texts whose parts are masked too: runs of a value that look random, as they are and encoded.

Libraries abbreviate credentials, as in `'sk-proj-Ab3...'`, and a part of a
credential is often most of it. A part of `MIN_PART` bytes is masked wherever it
appears. Text made of words, as in a path or a passphrase, is left out: its parts
appear in ordinary output.
"""

from __future__ import annotations

import math
import re
from base64 import b64encode
from collections import Counter
from collections.abc import Iterator
from typing import Final

MIN_PART: Final = 12
GRAM: Final = 8  # bytes; a part of MIN_PART bytes holds a whole gram
STRIDE: Final = MIN_PART - GRAM + 1  # if there is a gram at every fifth offset

_MIN_RUN = 20
_MIN_ENTROPY = 3.5  # bits for each character
_MIN_ENTROPY_OF_FEW = 3.0  # of what has few different characters, such as hex: a short run shows fewer still
_MIN_DISTINCT = 2  # different bytes in a gram
_MAX_ENCODED = 8_192  # bytes; parts of the encodings of a longer run would take too much memory

_RUN = re.compile(rb"[A-Za-z0-9+/_-]{%d,}" % _MIN_RUN)
_RUN_BYTES: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/_-"
_RUN_END: Final = re.compile(rb"[A-Za-z0-9+/_-]*\Z")
_LETTERS = re.compile(rb"(?<![A-Za-z0-9])([A-Za-z]{3,})[0-9]{0,4}(?![A-Za-z0-9])")
_WORD = re.compile(rb"[a-z]{3,16}|[A-Z]{3,16}|[A-Z]?[a-z]+(?:[A-Z][a-z]+){1,7}|[A-Z][a-z]{2,15}")
_MIN_HUMP = 4  # letters, on average, of a word in camel case
_SHORT_WORD = re.compile(rb"(?<![A-Za-z0-9])[A-Za-z][A-Za-z0-9]?(?![A-Za-z0-9])")
_LONG_NO_WORD = re.compile(rb"[A-Za-z0-9]{16}")
_UUID = re.compile(rb"[0-9A-Fa-f]{8}-(?:[0-9A-Fa-f]{4}-){3}[0-9A-Fa-f]{12}")
_UUID_OF_TIME = re.compile(  # versions 1, 2 and 6: all of one machine end in the same digits
    rb"[0-9A-Fa-f]{8}-[0-9A-Fa-f]{4}-[126][0-9A-Fa-f]{3}-[89ABab][0-9A-Fa-f]{3}-[0-9A-Fa-f]{12}"
)
_OF_FEW = re.compile(rb"(?=.*[A-Za-z])(?:[0-9A-Fa-f]+|(?=.*[0-9])(?:[0-9A-Z]+|[0-9a-z]+))")
_LETTER_OR_DIGIT = re.compile(rb"[A-Za-z0-9]")
# What is the same in every key of a kind: in PEM the first 36 bytes of a long key (RSA, OpenSSH) and 6 of
# others (EC, Ed25519), whose secret part begins soon after; the header of a JWT.
_SHARED = re.compile(
    rb"(?<=-----)\s*(?:(?:MII|b3BlbnNzaC)[A-Za-z0-9+/]{1,45}|[A-Za-z0-9+/]{8})"
    rb"|(?<![A-Za-z0-9_-])eyJ[A-Za-z0-9_-]+(?=\.eyJ)"
)
_URLSAFE_ALPHABET = bytes.maketrans(b"+/", b"-_")


def fragments_of(value: bytes) -> Iterator[bytes]:
    """The texts whose parts are masked for the sake of `value`."""
    searched = _SHARED.sub(b"\n", value) if b"-----BEGIN" in value or b"eyJ" in value else value
    searched = _UUID_OF_TIME.sub(b"\n", searched)
    for match in _RUN.finditer(searched):
        run = match[0]
        if _entropy(run) >= _least_entropy(run) and any(grams_of(run)):
            yield run
            yield from _encoded(run)
    if not _is_text(value) and len(value) >= MIN_PART:
        yield from _encoded(value)


def grams_of(text: bytes) -> Iterator[tuple[int, bytes]]:
    """The offset and the bytes of each gram of `text`, but for words and repeated characters."""
    without_words = text if _UUID.fullmatch(text) else _LETTERS.sub(_blank_if_word, text)
    if not _LONG_NO_WORD.search(without_words):  # else a short word is more likely part of a prefix: "sk-"
        without_words = _SHORT_WORD.sub(_blank, without_words)
    for offset in range(0, len(text) - GRAM + 1, STRIDE):
        gram = text[offset : offset + GRAM]
        if _LETTER_OR_DIGIT.search(without_words, offset, offset + GRAM) and len(set(gram)) >= _MIN_DISTINCT:
            yield offset, gram


def last_run(data: bytes, start: int) -> int:
    """Where the run at the end of `data` begins, from `start` on; the length of `data` for none."""
    match = _RUN_END.search(data, start)
    return match.start() if match else len(data)


def without_last_run(data: bytes) -> bytes:
    """`data` without the run at its end."""
    return data.rstrip(_RUN_BYTES)


def base64_parts(value: bytes) -> Iterator[bytes]:
    """For each of the three alignments, what is the same in the base64 of all texts that contain `value`."""
    for shift in range(3):
        first = -(-shift * 8 // 6)  # the characters before it also encode bits of the byte before
        last = (shift + len(value)) * 8 // 6
        yield b64encode(bytes(shift) + value)[first:last]


def _encoded(run: bytes) -> Iterator[bytes]:
    if len(run) > _MAX_ENCODED:
        return
    for part in base64_parts(run):
        yield part
        yield part.translate(_URLSAFE_ALPHABET)
    digits = run.hex().encode()
    yield digits
    yield digits.upper()


def _blank_if_word(match: re.Match[bytes]) -> bytes:
    letters = match[1]
    humps = 1 + sum(letter < ord("a") for letter in letters[1:])
    is_camel = not letters.isupper() and humps > 1
    is_word = _WORD.fullmatch(letters) and (not is_camel or len(letters) >= _MIN_HUMP * humps)
    return _blank(match) if is_word else match[0]


def _blank(match: re.Match[bytes]) -> bytes:
    return b" " * len(match[0])


def _least_entropy(run: bytes) -> float:
    return _MIN_ENTROPY_OF_FEW if _OF_FEW.fullmatch(run) or _UUID.fullmatch(run) else _MIN_ENTROPY


def _entropy(text: bytes) -> float:
    """Bits for each byte, by how often each occurs in `text`."""
    return -sum(count / len(text) * math.log2(count / len(text)) for count in Counter(text).values())


def _is_text(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True
