"""What `gusset exec` and `gusset agent` remember of values in a long run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from gusset.cli.provided_secrets import ProvidedSecrets
from gusset.secrets.masking import Masker
from gusset.secrets.recent_values import REMEMBERED
from gusset.secrets.sources.source import Delivered
from gusset.secrets.value import MASK, SecretValue


class NoFolder:
    path = Path("/nowhere")

    def replace(self, values: Mapping[str, SecretValue], previous: Mapping[str, SecretValue]) -> None:
        pass


def test_values_of_the_last_changes_are_masked_and_older_ones_are_forgotten() -> None:
    """So that a process whose secrets are rotated for months does not grow."""
    token = SecretValue(b"the token of the deployment")
    masker, held = Masker(), [token]
    secrets = ProvidedSecrets(NoFolder(), masker, files=["a", "b"], variables={}, held=held)
    rotated = [
        SecretValue(b"value number %04d\nits second line, %04d" % (number, number))
        for number in range(10 * REMEMBERED)
    ]
    constant = SecretValue(b"a value that stays")

    for number, value in enumerate(rotated, 1):
        secrets.provide({"a": Delivered(value, number, ""), "b": Delivered(constant, 1, "")})
        shown = [masker.mask(each.reveal()) for each in rotated[max(0, number - REMEMBERED) : number]]
        assert set(shown) == {MASK.encode()}
        assert masker.mask(constant.reveal()) == MASK.encode()
        assert len(held) <= 4 * REMEMBERED + 4

    assert held[0] is token
    assert masker.mask(rotated[0].reveal()) == rotated[0].reveal()
