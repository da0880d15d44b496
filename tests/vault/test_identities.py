"""Identities: exact rules, one team for each, and short tokens without anything stored."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest

from gusset.errors import Conflict, Denied, IntegrityError, NotFound, NotSignedIn, UsageError
from gusset.secrets.value import SecretValue
from gusset.settings import Settings
from gusset.vault import Vault, open_vault
from gusset.vault.services.identities import IdentityInfo
from gusset.vault.services.identity_rules import IdentityRule, check_issuer_url, checked_jwks
from gusset.vault.services.identity_tokens import IssuedToken
from gusset.vault.services.issuers import new_issuer
from tests.vault.conftest import Clock, Sql

ISSUER = "https://issuer.example"
CLAIMS = {"iss": ISSUER, "sub": "s", "aud": ["other", "gusset"], "kubernetes.io": {"namespace": "prod"}}


def rule(**changes: Any) -> IdentityRule:
    parts = {"issuer": ISSUER, "audience": "gusset", "subject": "s", "claims": {}}
    return IdentityRule(**(parts | changes))


@pytest.fixture
def vault(settings: Settings, clock: Clock) -> Iterator[Vault]:
    with open_vault(settings, clock=clock) as opened:
        opened.issuers.add(new_issuer(ISSUER), actor="ada")
        yield opened


Add = Callable[..., IdentityInfo]


@pytest.fixture
def add(vault: Vault) -> Add:
    """Adds an identity of a deployment `d` in a team."""

    def add(name: str = "i", team: str | None = None, *, admin: bool = False, **changes: Any) -> IdentityInfo:
        team_id = team or vault.teams.all()[0].id
        deployment = vault.deployments.register(team_id, "d", ["mine"], actor="ada")[0]
        new = changes.pop("new", None)
        wanted = rule(**changes)
        return vault.identities.add(
            name,
            wanted,
            deployment=deployment.id,
            new_issuer=new or new_issuer(wanted.issuer),
            may_add_issuer=admin,
            actor="ada",
        )

    return add


def issue(vault: Vault, identity: IdentityInfo, seconds: float = 3600.0) -> IssuedToken:
    return vault.identity_tokens.issue(identity, seconds_left=seconds, details={}, actor="d")


@pytest.mark.parametrize(
    ("changes", "matches"),
    [
        ({}, True),
        ({"claims": {"/kubernetes.io/namespace": "prod"}}, True),
        ({"claims": {"/n": 1}}, True),
        ({"issuer": ISSUER + "/"}, False),
        ({"audience": "Gusset"}, False),
        ({"audience": "guss"}, False),
        ({"subject": "s*"}, False),
        ({"subject": "S"}, False),
        ({"claims": {"/kubernetes.io/namespace": "pro"}}, False),
        ({"claims": {"/kubernetes.io/namespace": "prod", "/ref": "main"}}, False),
        ({"claims": {"/n": "1"}}, False),
        ({"claims": {"/n": True}}, False),
        ({"claims": {"/yes": 1}}, False),
        ({"claims": {"/yes": True}}, True),
        ({"claims": {"/kubernetes.io": "prod"}}, False),
        ({"claims": {"/nothing": "null"}}, False),
    ],
)
def test_a_rule_matches_exactly(changes: dict[str, Any], matches: bool) -> None:
    """There are no patterns and prefixes, and a number is not its text."""
    token = CLAIMS | {"n": 1, "yes": True, "nothing": None}
    assert rule(**changes).matches(token) is matches


def test_an_audience_may_be_a_single_text() -> None:
    assert rule().matches(CLAIMS | {"aud": "gusset"})
    assert not rule().matches(CLAIMS | {"aud": {"gusset": 1}})
    assert not rule().matches({name: value for name, value in CLAIMS.items() if name != "aud"})


@pytest.mark.parametrize(
    "changes",
    [
        {"audience": ""},
        {"subject": "a\x00b"},
        {"subject": "s" * 1001},
        {"claims": {"ref": "main"}},
        {"claims": {"": "main"}},
        {"claims": {"/~2": "main"}},
        {"claims": {"/ref": ""}},
        {"claims": {"/n": 2**53}},
        {"claims": {f"/{n}": "v" for n in range(21)}},
    ],
)
def test_a_rule_that_could_match_by_accident_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        rule(**changes).check()


@pytest.mark.parametrize(
    "url",
    [
        "http://issuer.example",
        "ftp://issuer.example",
        "https://",
        "https://user@issuer.example",
        "https://user:secret@issuer.example",
        "https://issuer.example?x=1",
        "https://issuer.example#x",
        "https://issuer.example:0",
        "https://issuer.example:x",
        "https://issuer.example\\@other.example",
        "https://issuer.exämple",
        "kubernetes/serviceaccount",
        "https://" + "a" * 1000,
    ],
)
def test_a_url_that_is_no_issuer_is_refused(url: str) -> None:
    with pytest.raises(UsageError):
        check_issuer_url(url)


@pytest.mark.parametrize("url", ["https://issuer.example/a/b", "http://127.0.0.1:8000", "http://localhost/x"])
def test_an_issuer_is_https_or_on_this_machine(url: str) -> None:
    check_issuer_url(url)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"keys": []}',
        '{"keys": [1]}',
        '{"keys": [{"kty": "oct", "k": "c2VjcmV0LXZhbHVl"}]}',
        '{"keys": [{"kty": "OKP", "crv": "Ed25519", "x": "x", "d": "c2VjcmV0LXZhbHVl"}]}',
        json.dumps({"keys": [{"kty": "EC", "kid": "k" * 262_144}]}),
        "[" * 100_000,
    ],
)
def test_keys_that_cannot_be_used_are_refused_without_being_repeated(text: str) -> None:
    with pytest.raises(UsageError) as refused:
        checked_jwks(text)
    assert "c2VjcmV0LXZhbHVl" not in str(refused.value)


def test_only_what_verifies_a_token_is_kept_of_a_key() -> None:
    stored = checked_jwks('{"keys": [{"kty": "EC", "kid": "1", "x5u": "https://evil.example"}], "more": 1}')
    assert json.loads(stored) == {"keys": [{"kty": "EC", "kid": "1"}]}


def test_one_rule_belongs_to_one_team(vault: Vault, add: Add) -> None:
    """Within the team it may stand for several deployments; another team cannot take it."""
    add("one", claims={"/a": "1", "/b": "2"})
    add("two", claims={"/b": "2", "/a": "1"})
    other = vault.teams.create("other", actor="ada").id
    with pytest.raises(Conflict, match="another team"):
        add("three", other, claims={"/b": "2", "/a": "1"})
    assert add("three", other, claims={"/a": "1"}).team == "other"


def test_a_name_is_used_once_in_a_team(vault: Vault, add: Add) -> None:
    add()
    with pytest.raises(Conflict, match="already an identity"):
        add(subject="other")
    assert add("i", vault.teams.create("other", actor="ada").id, subject="other").name == "i"


def test_only_an_administrator_adds_a_missing_issuer(vault: Vault, add: Add) -> None:
    new = new_issuer("https://new.example", "https://new.example/keys")
    with pytest.raises(Denied, match="only an administrator"):
        add(issuer=new.url, new=new)
    assert vault.issuers.find(new.url) is None
    add(issuer=new.url, new=new, admin=True)
    added = vault.issuers.find(new.url)
    assert added is not None
    assert (added.jwks_url, added.allow_private) == (new.jwks_url, False)
    add("same", issuer=new.url, new=new)
    with pytest.raises(Conflict, match="another key source"):
        add("other", issuer=new.url, new=new_issuer(new.url, "https://evil.example"))


def test_an_issuer_in_use_is_not_removed(vault: Vault, add: Add) -> None:
    identity = add()
    with pytest.raises(Conflict, match="identities use that issuer: i"):
        vault.issuers.remove(ISSUER, actor="ada")
    vault.identities.remove(identity.team_id, "i", actor="ada")
    vault.issuers.remove(ISSUER, actor="ada")
    with pytest.raises(NotFound):
        vault.issuers.remove(ISSUER, actor="ada")
    assert not vault.audit.verify().problems


def test_the_keys_of_an_issuer_in_use_can_be_replaced(vault: Vault, add: Add, clock: Clock) -> None:
    """Only if that is meant; the identities stay."""
    add()
    changed = new_issuer(ISSUER, '{"keys": [{"kty": "EC", "kid": "2"}]}')
    with pytest.raises(Conflict, match="already"):
        vault.issuers.add(changed, actor="ada")
    clock.now += timedelta(seconds=1)
    before = vault.issuers.find(ISSUER)
    after = vault.issuers.add(changed, replace=True, actor="ada")
    assert before is not None
    assert (before.jwks, before.created_at) != (after.jwks, after.created_at)
    assert vault.issuers.find(ISSUER) == after
    assert vault.identities.matching(CLAIMS)
    assert not vault.audit.verify().problems


def test_a_token_lives_ten_minutes_or_what_is_left(vault: Vault, clock: Clock, add: Add) -> None:
    identity = add()
    assert issue(vault, identity).lifetime == 600
    short = issue(vault, identity, 42.9)
    assert short.lifetime == 42
    clock.now += timedelta(seconds=41)
    assert vault.identity_tokens.authenticate(short.token)[1].names == ("mine",)
    clock.now += timedelta(seconds=1)
    with pytest.raises(NotSignedIn, match="has expired") as refused:
        vault.identity_tokens.authenticate(short.token)
    assert refused.value.ended


def test_a_token_reads_what_the_deployment_declares_now(vault: Vault, add: Add) -> None:
    identity = add()
    token = issue(vault, identity).token
    vault.deployments.register(identity.team_id, "d", ["mine", "yours"], actor="ada")
    assert vault.identity_tokens.authenticate(token)[1].names == ("mine", "yours")


@pytest.mark.parametrize("removed", ["identity", "deployment"])
def test_a_token_ends_with_its_identity_and_its_deployment(vault: Vault, add: Add, removed: str) -> None:
    """Also when another of the same name is added: it has another id."""
    identity = add()
    token = issue(vault, identity).token
    if removed == "identity":
        vault.identities.remove(identity.team_id, "i", actor="ada")
    else:
        vault.deployments.remove(identity.team_id, "d", actor="ada")
        assert vault.identities.of_teams([identity.team_id]) == []
    add()
    with pytest.raises(NotSignedIn, match="was removed") as refused:
        vault.identity_tokens.authenticate(token)
    assert refused.value.ended
    with pytest.raises(NotSignedIn):
        issue(vault, identity)
    assert not vault.audit.verify().problems


def test_an_altered_token_is_unknown(vault: Vault, add: Add) -> None:
    """Neither its identity nor its expiry can be changed."""
    first, second = add("one"), add("two", subject="other")
    text = issue(vault, first).token.reveal().decode()
    expiry = text.split("_")[3]
    forged = [
        text.replace(first.id, second.id),
        text.replace(expiry, str(int(expiry) + 1)),
        text[:-1] + ("A" if text[-1] != "A" else "E"),
        text + "=",
        text.replace(expiry, "0" + expiry),
        text.upper(),
        "gusset_idt_",
    ]
    for each in forged:
        with pytest.raises(NotSignedIn):
            vault.identity_tokens.authenticate(SecretValue(each.encode()))


def test_another_manager_verifies_a_token_also_after_a_key_was_replaced(
    vault: Vault, add: Add, settings: Settings, clock: Clock
) -> None:
    """Those of the replaced key have ended for all, and are told from forged ones; the deployment exchanges again."""
    identity = add()
    old = issue(vault, identity).token
    with open_vault(settings, clock=clock) as other:
        assert other.identity_tokens.authenticate(old)[1].deployment == "d"
        vault.key_rotation.rotate(actor="ada", kinds=["audit"])
        new = issue(vault, identity).token
        assert other.identity_tokens.authenticate(new)[1].deployment == "d"
        for each in (vault, other):
            with pytest.raises(NotSignedIn, match="was replaced") as refused:
                each.identity_tokens.authenticate(old)
            assert refused.value.ended


def test_no_token_is_in_the_audit_log_or_in_a_repr(vault: Vault, add: Add) -> None:
    issued = issue(vault, add())
    text = issued.token.reveal().decode()
    records = [record.data() for record in vault.audit.export()]
    assert records[-1]["action"] == "identity.exchange"
    assert records[-1]["details"]["deployment"] == "d"
    mac = text.split("_", 4)[4]
    assert mac not in json.dumps(records)
    assert mac not in repr(issued)


@pytest.mark.parametrize(
    ("change", "claims"),
    [
        ("subject = 'eve'", CLAIMS | {"sub": "eve"}),
        ("claims = '{}'", {**CLAIMS, "kubernetes.io": {"namespace": "test"}}),
        ("audience = 'other'", CLAIMS),
        ("deployment_id = 'another'", CLAIMS),
    ],
)
def test_a_changed_identity_is_found_and_not_used(
    vault: Vault, add: Add, sql: Sql, change: str, claims: dict[str, Any]
) -> None:
    """It admits no workload, also not the one that it was for, and its tokens end."""
    token = issue(vault, add(claims={"/kubernetes.io/namespace": "prod"})).token
    sql(f"UPDATE identities SET {change}")
    with pytest.raises(IntegrityError, match="the identity i was altered"):
        vault.identities.matching(claims)
    with pytest.raises(IntegrityError, match="the identity i was altered"):
        vault.identity_tokens.authenticate(token)
    assert vault.audit.verify().problems[0].startswith("identities: the identity i was altered after record")


@pytest.mark.parametrize(
    "change",
    ["jwks_url = 'https://evil.example'", "jwks = '{}'", "allow_private = 1", "url = 'https://evil.example'"],
)
def test_a_changed_issuer_is_found_and_not_used(vault: Vault, sql: Sql, change: str) -> None:
    """Its keys are not fetched from where the row says."""
    sql(f"UPDATE issuers SET {change}")
    [(url,)] = sql("SELECT url FROM issuers")
    with pytest.raises(IntegrityError, match=f"the issuer {url} was altered"):
        vault.issuers.find(url)
    assert vault.audit.verify().problems[0].startswith(f"issuers: the issuer {url} ")


def test_a_removed_identity_is_found_and_its_tokens_end(vault: Vault, add: Add, sql: Sql) -> None:
    identity = add()
    token = issue(vault, identity).token
    sql("DELETE FROM identities")
    assert vault.identities.matching(CLAIMS) == []
    with pytest.raises(NotSignedIn, match="was removed"):
        vault.identity_tokens.authenticate(token)
    [problem] = vault.audit.verify().problems
    assert problem.startswith(f"identities: the row {identity.id} of record") and problem.endswith(
        "is missing"
    )
