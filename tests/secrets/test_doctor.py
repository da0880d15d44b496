"""The value doctor warns of what people get wrong, and never repeats a value."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gusset.secrets.value_doctor import _findings_of_other_text, examine

NOW = datetime(2030, 1, 1, tzinfo=UTC)
HF = "hf_" + "aB3dE5gH7j" * 3 + "kLmN"
BODY = base64.b64encode(bytes(range(96))).decode()
PEM = f"-----BEGIN PRIVATE KEY-----\n{BODY[:64]}\n{BODY[64:]}\n-----END PRIVATE KEY-----\n"


def jwt(claims: object) -> str:
    parts = ({"alg": "none"}, claims)
    return ".".join(
        [*(base64.urlsafe_b64encode(json.dumps(p).encode()).decode().rstrip("=") for p in parts), "c2ln"]
    )


def codes(value: str | bytes, name: str | None = None) -> list[str]:
    data = value.encode() if isinstance(value, str) else value
    return [finding.code for finding in examine(data, name=name, now=NOW)]


@pytest.mark.parametrize(
    "value",
    [
        HF,
        "correct horse battery staple",
        PEM,
        PEM.replace("\n", "\r\n"),
        PEM + PEM,
        '{"type": "service_account", "private_key": "x"}',
        json.dumps({"type": "service_account", "private_key": PEM}, indent=2),
        '{"a": 1}\n',
        "line one\n\tline two",
        base64.b64encode(bytes(range(200, 230))).decode(),
        "postgresql://user:pa$$word@host/db",
        b"\x00\x01\x02\x80\xff binary key",
        jwt({"exp": NOW.timestamp() + 1}),
        jwt({"exp": 10**400}),
        jwt({"sub": "without expiry"}),
        'it\'s a "quoted" word',
        "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\n"
        + BODY
        + "\n-----END RSA PRIVATE KEY-----\n",
    ],
)
def test_correct_values_cause_no_warning(value):
    """Values as they should be have no findings."""
    assert codes(value) == []


@pytest.mark.parametrize(
    ("value", "code"),
    [
        (HF + "\n", "trailing_whitespace"),
        (HF + " ", "trailing_whitespace"),
        (" " + HF, "leading_whitespace"),
        (f'"{HF}"', "quotes"),
        (f"'{HF}'", "quotes"),
        (b"\xef\xbb\xbf" + HF.encode(), "bom"),
        ("token-value".encode("utf-16"), "utf16"),
        (f"\u201c{HF}\u201d", "smart_quotes"),
        ("token\u200b-value", "invisible_character"),
        ("token\u00a0value", "invisible_character"),
        ("null", "placeholder"),
        ("None", "placeholder"),
        ("changeme", "placeholder"),
        ("CHANGE_ME", "placeholder"),
        ("ENTER TOKEN HERE", "placeholder"),
        ("<your token>", "placeholder"),
        ("your-api-key", "placeholder"),
        ("xxxxxxxxxxxx", "placeholder"),
        ("${HF_TOKEN}", "reference"),
        ("postgresql://app:${DB_PASSWORD}@db/app", "reference"),
        ("${DB_PASSWORD:-none}", "reference"),
        ("op://vault/item/field", "other_manager"),
        ("vault:secret/data/app#password", "other_manager"),
        ("arn:aws:secretsmanager:eu-west-1:1:secret:db", "other_manager"),
        ("projects/1/secrets/db/versions/latest", "other_manager"),
        ("two\rlines", "control_character"),
        ("first\r\nsecond", "control_character"),
        ("\x1b[200~pasted-value\x1b[201~", "control_character"),
        ("token\0value", "control_character"),
        (base64.b64encode(HF.encode()).decode(), "encoded_token"),
        (base64.b64encode(HF.encode() + b"\n").decode(), "encoded_token"),
        (json.dumps({"private_key": PEM.replace("\n", "")}), "pem_one_line"),
        ("$(cat token.txt)", "reference"),
        ("", "blank"),
        ("  \n", "blank"),
        (f"HF_TOKEN={HF}", "assignment"),
        (f"export HF_TOKEN={HF}", "assignment"),
        (f"Bearer {HF}", "header"),
        (f"Authorization: Bearer {HF}", "header"),
        ("hf_short-one", "token_shape"),
        ("ghp_tooshort", "token_shape"),
        ("AKIAshouldbeupper", "token_shape"),
        (HF + HF + HF, "token_shape"),
        (PEM[:-30], "pem_truncated"),
        (PEM[30:], "pem_truncated"),
        (PEM.replace("\n", " "), "pem_one_line"),
        (PEM.replace("\n", ""), "pem_one_line"),
        (PEM.replace("\n", "\\n"), "pem_one_line"),
        (PEM.replace(BODY[10:15], "", 1), "pem_damaged"),
        ('{"private_key": "s3cret"', "json"),
        ("[1, 2", "json"),
        ("[" * 20_000, "json"),
        (jwt({"exp": NOW.timestamp() - 1}), "jwt_expired"),
        ("1234567", "short"),
    ],
)
def test_each_common_mistake_has_its_own_code(value, code):
    """The warning can be recognized by its code."""
    assert code in codes(value)


def test_a_token_of_another_issuer_than_the_name_suggests_is_reported():
    """A token under the wrong name is reported; a fitting or unknown name is not."""
    assert codes(HF, "openai_api_key") == ["other_kind"]
    assert codes(HF, "hf-access-token") == codes(HF, "my_key") == codes(HF) == []
    assert codes("sk-" + "aB3" * 10, "openai_api_key") == []


def test_the_end_of_json_is_pointed_at():
    """A JSON error is reported by line and column, without the text."""
    (finding,) = examine(b'{"a": 1,\n "key" s3cret}', now=NOW)
    assert "line 2 column 8" in finding.message


faulty = st.sampled_from(
    [
        "{}\n",
        " {}",
        '"{}"',
        "\u201c{}\u201d",
        "hf_{}",
        "{{{}",
        "[{}",
        "Bearer {}",
        "API_KEY={}",
        "-----BEGIN {}",
        "${{{}}}",
    ]
)


@given(faulty, st.from_regex(r"[b-df-hj-np-tv-z]{7,20}", fullmatch=True))
def test_no_finding_repeats_the_value(template, secret):
    """Whatever is wrong, message and hint hold nothing of the value."""
    findings = examine(template.replace("{}", secret).encode(), name="hf_token", now=NOW)
    assert findings
    assert secret not in repr(findings)


@pytest.mark.parametrize(
    "word", [b"KEY", b"'", b"{", b"[1,", b"-----BEGIN ", b"A ", b"a://x:", b"eyJ", b"${", b"hf_"]
)
def test_long_values_are_examined_in_one_go(word):
    """No pattern goes back and forth over the longest of values (this would take minutes)."""
    examine(word * (65_536 // len(word)), name="x", now=NOW)


@given(st.binary(max_size=100))
def test_any_bytes_are_examined(value):
    """No value makes the doctor fail."""
    examine(value, name="x", now=NOW)


@given(st.from_regex(rb"[A-Za-z0-9_-]{1,60}", fullmatch=True))
def test_a_word_has_none_of_the_findings_that_are_not_looked_for_in_words(word):
    """Checks that are left out for letters, digits, `_` and `-` would find nothing in them."""
    text = word.decode()
    assert not any(_findings_of_other_text(word, text, text, NOW))
