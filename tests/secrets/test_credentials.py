"""Credentials are known by their documented shapes; other texts are let be."""

from __future__ import annotations

import pytest

from gusset.secrets.credentials import find_credentials, looks_like_credential, misshapen_token

REAL = [
    "hf_" + "aB3x" * 9,
    "sk-proj-" + "aB3x" * 12,
    "sk-ant-api03-" + "aB3x" * 20,
    "AKIA" + "ABCD" * 4,
    "ghp_" + "aB3x" * 9,
    "github_pat_" + "aB3xY" * 4 + "aB_" + "a" * 59,
    "glpat-" + "aB3x" * 5,
    "xoxb-123456789012-" + "aB3x" * 6,
    "AIza" + "aB3xY" * 7,
    "eyJhbGciOiJI.eyJzdWIiOiIx.c2lnbmF0dXJl",
    "-----BEGIN RSA PRIVATE KEY-----",
    "postgresql://user:passw0rd@host/db",
]
HARMLESS = [
    "", "null", "ENTER TOKEN HERE", "hf_xxx", "your-api-key-goes-here", "s3://bucket/some/long/path/to/a/model-00001",
    "bert-base-uncased-finetuned-squad", "https://example.com/a:b", "sk-learn", "postgresql://user:$PASSWORD@host/db",
    "my_hf_" + "a" * 40,
]  # fmt: skip


@pytest.mark.parametrize("text", REAL)
def test_credentials_are_found_within_text(text: str) -> None:
    """Exactly where they stand, and named by kind alone."""
    [match] = find_credentials(f"before '{text}' after")

    assert match.start == len("before '")
    assert text not in match.kind


@pytest.mark.parametrize("text", HARMLESS)
def test_other_texts_are_not_credentials(text: str) -> None:
    """Names, examples and templates are not reported."""
    assert find_credentials(text) == []
    assert looks_like_credential(text) is None


def test_random_words_count_as_credentials_only_in_place_of_a_name() -> None:
    """High entropy counts where only a name belongs, not in every text."""
    assert looks_like_credential("Q7x9ZkfL2mP0vR8tW3yB6nC1")
    assert find_credentials("Q7x9ZkfL2mP0vR8tW3yB6nC1") == []


def test_an_incomplete_token_is_recognized() -> None:
    """Cut off, or with something added."""
    assert misshapen_token(REAL[0]) is None
    assert misshapen_token("plain") is None
    cut = misshapen_token(REAL[0][:20])
    assert cut is not None
    assert cut.prefix == "hf_"
