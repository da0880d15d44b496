"""The rule for names, and how spellings fold together."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gusset.errors import CredentialAsName, InvalidName
from gusset.secrets.name import check_name, fold_name, spelling_clashes


@pytest.mark.parametrize(
    "name", ["a", "hf_access_token", "A-Z.0_9", ".hidden", "a..b", "-", "_", "x" * 253, "123"]
)
def test_valid_names_pass(name):
    """These are names, and come back unchanged."""
    assert check_name(name) == name


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        ".",
        "..",
        "..data",
        "...",
        "a/b",
        "../a",
        "a b",
        "a\n",
        "\na",
        "a\x00",
        "\u00e9",
        "\uff41",
        "x" * 254,
        "a\\b",
        "a:b",
    ],
)
def test_invalid_names_are_refused(wrong):
    """The rule holds for the whole text: a trailing newline, a path, a letter beyond ASCII."""
    with pytest.raises(InvalidName):
        check_name(wrong)


@pytest.mark.parametrize("wrong", [None, 1, b"name", ["name"]])
def test_a_name_must_be_a_text(wrong):
    """Anything but a text is refused, by its type."""
    with pytest.raises(InvalidName, match=type(wrong).__name__):
        check_name(wrong)


def test_an_invalid_name_is_not_repeated():
    """A value typed in a name's place shows no more than which kinds of characters were wrong."""
    with pytest.raises(InvalidName) as caught:
        check_name("hunter2 is/my password\n")
    assert "hunter2" not in f"{caught.value} {caught.value.hint} {caught.value!r}"
    assert "a space" in str(caught.value)


@pytest.mark.parametrize(
    "typed",
    [
        "hf_" + "aB3x" * 9,
        "hf_abcdefghijklmnopqrstuvwxyzabcdefgh",
        "sk-ant-api03-" + "aB3x-" * 20,
        "sk_live_" + "aB3x" * 6,
        "AKIAABCDEFGHIJKLMNOP",
        "ghp_" + "aB3x" * 9,
        "eyJhbGciOiJI.eyJzdWIiOiIx.c2lnbmF0dXJl" + "aB3x" * 80,
        "prefix.hf_" + "aB3x" * 9,
        "postgresql://user:passw0rd@host/db",
        "0f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c",
        "Q7x9ZkfL2mP0vR8tW3yB6nC1",
    ],
)
def test_a_credential_is_refused_as_a_name(typed):
    """It is not repeated, and the hint says where it now lies."""
    with pytest.raises(CredentialAsName, match="looks like a credential, not a name") as caught:
        check_name(typed)
    assert typed not in f"{caught.value} {caught.value.hint} {caught.value!r}"
    assert "history" in caught.value.hint


@pytest.mark.parametrize(
    "name",
    [
        "hf_access_token",
        "hf-token",
        "sk_prod",
        "sk-learn-model-registry-key",
        "sk-ant-key-of-the-research-team-2",
        "ghs_token_for_the_runner_and_something_else_long",
        "aws-s3-bucket-key-prod-eu-west-1-2024",
        "db_password_v2_staging_2024q1",
        "stagingDatabasePassword2024",
        "OPENAI_API_KEY_OF_TEAM_42",
        "SALESFORCE_OAUTH2_CLIENT_SECRET_SANDBOX",
        "x509_client_certificate_mtls_edge_gateway_v3",
        "prod.kafka.broker-3.sasl-password",
        "DOCKER_REGISTRY_123456789012.dkr.ecr.us-east-1.amazonaws.com",
        "123e4567-e89b-12d3-a456-426614174000",
        "x" * 253,
    ],
)
def test_long_names_of_words_and_numbers_are_valid(name):
    """They are not mistaken for credentials, whatever they start with."""
    assert check_name(name) == name


@given(st.text(min_size=1, max_size=260))
def test_a_valid_name_is_one_component_of_a_path(text):
    """Whatever passes the check is one plain component of a path, in ASCII."""
    try:
        name = check_name(text)
    except InvalidName:
        return
    assert name.isascii()
    assert "/" not in name
    assert not name.startswith("..")
    assert name != "."


def test_folding_maps_each_character_to_one():
    """`-`, `_` and `.` are the same character, one for one."""
    assert fold_name("hf-access.token") == fold_name("hf_access_token") == "hf_access_token"
    assert fold_name("a--b") != fold_name("a-b")
    assert fold_name("A") != fold_name("a")


def test_different_spellings_of_one_secret_are_found():
    """Each other spelling is paired with the one seen first."""
    assert spelling_clashes(["a-b", "c", "a_b", "a-b", "a.b"]) == [("a-b", "a_b"), ("a-b", "a.b")]
    assert spelling_clashes(["a", "b"]) == []
