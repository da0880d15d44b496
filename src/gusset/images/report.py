"""What a scan has found, and what it has searched. No text in it contains a value."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from gusset.errors import Problem

_MAX_SHOWN = 20  # findings of a secret
_SHORT_DIGEST = len("sha256:") + 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A secret in an image.

    `layer` counts from 1; it is None for what is in no layer. `file` is a file in the layer, or of the
    archive; `inside` is a file in that one, if it is an archive. `part` says what of it has the value,
    `count` how often, and `instruction` what made the layer, or the part of the config, if that is known.
    """

    secret: str
    form: str
    image: str
    layer: int | None
    layers: int
    digest: str
    file: str
    inside: str
    part: str
    instruction: str | None
    count: int

    @property
    def location(self) -> str:
        """Image, layer and file, for people."""
        parts = [self.image]
        if self.layer is not None:
            digest = f" ({self.digest[:_SHORT_DIGEST]})" if self.digest else ""
            parts.append(f"layer {self.layer} of {self.layers}{digest}")
        if self.file:
            parts.append(self.file)
        if self.inside:
            parts.append(f"in it {self.inside}")
        return ", ".join(parts)

    def problem(self, *, warning: bool) -> Problem:
        """The finding as a problem that can be printed."""
        times = "" if self.count == 1 else f", {self.count:,} times"
        form = "" if self.form == "plain" else f" ({self.form})"
        return Problem(
            f"{self.secret}{form} is in the {self.part}{times}",
            f"made by: {self.instruction}" if self.instruction else None,
            file=self.location,
            code="secret_in_image",
            warning=warning,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The result of a scan.

    `found` are secrets in the image. `accepted` are those that the caller has allowed. `weak` are values
    so ordinary that they may be there by chance. `errors` say what could not be read: with one of them,
    or with something found, the image is not clean. `notes` say what was not searched in all its depth.
    """

    target: str
    images: Sequence[str]
    found: Sequence[Finding]
    accepted: Sequence[Finding]
    weak: Sequence[Finding]
    errors: Sequence[str]
    notes: Sequence[str]
    layers: int
    files: int
    size: int
    secrets: Sequence[str]
    ignored: Sequence[str]

    @property
    def is_clean(self) -> bool:
        """Whether everything was read, and nothing was found."""
        return not (self.found or self.errors)

    def problems(self) -> list[Problem]:
        """The findings but the accepted ones, for people: errors, then warnings, a few of each secret."""
        return [*_problems(self.found, warning=False), *_problems(self.weak, warning=True)]

    def data(self) -> Mapping[str, Any]:
        """The report as JSON data."""
        return {
            "target": self.target,
            "clean": self.is_clean,
            "images": list(self.images),
            "findings": [asdict(each) for each in self.found],
            "accepted": [asdict(each) for each in self.accepted],
            "warnings": [asdict(each) for each in self.weak],
            "errors": list(self.errors),
            "notes": list(self.notes),
            "searched": {
                "layers": self.layers,
                "files": self.files,
                "bytes": self.size,
                "secrets": list(self.secrets),
                "not_searched_for": list(self.ignored),
            },
        }


def _problems(findings: Sequence[Finding], *, warning: bool) -> Iterator[Problem]:
    counts: Counter[str] = Counter()
    for each in findings:
        counts[each.secret] += 1
        if counts[each.secret] <= _MAX_SHOWN:
            yield each.problem(warning=warning)
    for secret, count in counts.items():
        if count > _MAX_SHOWN:
            more = f"{secret} is in {count - _MAX_SHOWN:,} more places"
            yield Problem(more, "--output json lists them", code="secret_in_image", warning=warning)
