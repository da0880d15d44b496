"""The actions of audit records. `docs/manager.md` explains each."""

# ruff: noqa: S105  # these are names of actions, not passwords

from __future__ import annotations

from enum import StrEnum


class Action(StrEnum):
    """What was done or refused, as `KIND.VERB`. The values are stored: never change one.

    Where a success leaves no record, the action appears only with the code of an error as its outcome.
    """

    VAULT_CREATE = "vault.create"
    VAULT_SIGN = "vault.sign"
    VAULT_PROBE = "vault.probe"
    SECRET_CREATE = "secret.create"
    SECRET_WRITE = "secret.write"
    SECRET_ANNOTATE = "secret.annotate"
    SECRET_ROLLBACK = "secret.rollback"
    SECRET_DELETE = "secret.delete"
    SECRET_RESTORE = "secret.restore"
    SECRET_DESTROY = "secret.destroy"
    SECRET_END_OVERLAP = "secret.end_overlap"
    SECRET_DELIVER = "secret.deliver"
    SECRET_REVEAL = "secret.reveal"
    SECRET_MASKED = "secret.masked"
    ROTATION_BEGIN = "rotation.begin"
    ROTATION_RESUME = "rotation.resume"
    ROTATION_SET = "rotation.set"
    ROTATION_ADVANCE = "rotation.advance"
    ROTATION_REVOKE = "rotation.revoke"
    ROTATION_FINISH = "rotation.finish"
    ROTATION_CANCEL = "rotation.cancel"
    ROTATION_STOP = "rotation.stop"
    DEPLOYMENT_REGISTER = "deployment.register"
    DEPLOYMENT_REMOVE = "deployment.remove"
    ISSUER_ADD = "issuer.add"
    ISSUER_REMOVE = "issuer.remove"
    IDENTITY_ADD = "identity.add"
    IDENTITY_REMOVE = "identity.remove"
    IDENTITY_EXCHANGE = "identity.exchange"
    REPLICA_REPORT = "replica.report"
    TOKEN_REVOKE = "token.revoke"
    API_KEY_CREATE = "api_key.create"
    API_KEY_REVOKE = "api_key.revoke"
    KEY_USE = "key.use"
    KEY_ROTATE = "key.rotate"
    KEY_REWRAP = "key.rewrap"
    KEY_ADD_ROOT = "key.add_root"
    KEY_ROTATE_ROOT = "key.rotate_root"
    SESSION_CREATE = "session.create"
    SESSION_USE = "session.use"
    SESSION_END = "session.end"
    PERSON_CREATE = "person.create"
    PERSON_LINK = "person.link"
    PERSON_PASSWORD = "person.password"
    PERSON_ROLE = "person.role"
    PERSON_DISABLE = "person.disable"
    PERSON_ENABLE = "person.enable"
    TEAM_CREATE = "team.create"
    TEAM_ADD_MEMBER = "team.add_member"
    TEAM_REMOVE_MEMBER = "team.remove_member"
    AUDIT_ACCEPT_LOSS = "audit.accept_loss"
    REQUEST_REFUSE = "request.refuse"
    REQUEST_REPEAT = "request.repeat"


# Each of them makes a keyring of the next generation, which its details have as `keyring`.
KEY_CHANGES = frozenset(
    (
        Action.VAULT_CREATE,
        Action.VAULT_SIGN,
        Action.KEY_ROTATE,
        Action.KEY_ADD_ROOT,
        Action.KEY_ROTATE_ROOT,
    )
)
