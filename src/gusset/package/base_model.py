"""The base class of the sections of `config.yaml`, and the error for a broken rule."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, ClassVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError


def rule_error(message: str, hint: str | None = None, *, at: tuple[Any, ...] = ()) -> PydanticCustomError:
    """An error for pydantic to collect; `at` is the path of its key within the validated section."""
    return PydanticCustomError("rule", "{message}", {"message": message, "hint": hint, "at": at})


class Section(BaseModel):
    """A map of the file. Unknown keys are kept. No error contains its input."""

    model_config = ConfigDict(extra="allow", hide_input_in_errors=True, protected_namespaces=())

    hidden_when_none: ClassVar[frozenset[str]] = frozenset()

    @model_serializer(mode="wrap")
    def _unknown_keys_last(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        data = handler(self)
        extra = self.model_extra or {}
        known = {name: value for name, value in data.items() if name not in extra}
        for name in self.hidden_when_none:
            if known.get(name) is None:
                known.pop(name, None)
        return known | {name: data[name] for name in extra if name in data}


NonEmpty = Annotated[str, Field(min_length=1)]


_OIDC_GROUPS = {
    "AWS_OIDC": ("aws_oidc_role_arn", "aws_oidc_region"),
    "GCP_OIDC": ("gcp_oidc_service_account", "gcp_oidc_workload_id_provider"),
    "AWS_ASSUME_ROLE": ("aws_assume_role_arn", "aws_assume_role_region"),
}


def upper(value: Any) -> Any:
    return value.upper() if isinstance(value, str) else value


class Auth(Section):
    """Credentials for a registry or for weights: a method, and the keys that it needs or excludes."""

    secret_key: ClassVar[str]
    secret_method: ClassVar[str]

    aws_oidc_role_arn: str | None = None
    aws_oidc_region: str | None = None
    gcp_oidc_service_account: str | None = None
    gcp_oidc_workload_id_provider: str | None = None
    aws_assume_role_arn: str | None = None
    aws_assume_role_region: str | None = None

    @model_validator(mode="after")
    def _keys_fit_method(self) -> Auth:
        method = getattr(self, "auth_method")  # noqa: B009 - defined by subclasses, each with its own methods
        groups = [key for keys in _OIDC_GROUPS.values() for key in keys]
        if method == self.secret_method:
            self._require(method, required=[self.secret_key], refused=groups)
        elif required := _OIDC_GROUPS.get(method):
            others = [key for key in groups if key not in required]
            self._require(method, required=list(required), refused=[self.secret_key, *others])
        return self

    def _require(self, method: str, *, required: Iterable[str], refused: Iterable[str]) -> None:
        missing = [key for key in required if not getattr(self, key)]
        excluded = [key for key in refused if getattr(self, key)]
        if missing:
            raise rule_error(f"{method} needs {', '.join(missing)}", f"add {' and '.join(missing)}")
        if excluded:
            raise rule_error(
                f"{method} excludes {', '.join(excluded)}", "remove the keys that the method does not use"
            )
