"""Verification by public keys alone: of checkpoints, and of an exported audit log. It needs no vault.

Whoever holds no key of the vault cannot verify the HMACs of records. But each checkpoint vouches for
all records up to its own, since their hashes are chained.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from gusset.errors import UsageError
from gusset.vault.audit.chain_walk import ChainWalk
from gusset.vault.audit.checkpoints import CheckpointComparison, given_checkpoints
from gusset.vault.audit.events import AuditRecord
from gusset.vault.audit.log import VerificationReport
from gusset.vault.crypto.public_keys import PublicKeys


def read_public_keys(path: Path) -> PublicKeys:
    """The keys that `gusset audit public-key` printed to a file. Raises UsageError."""
    try:
        return PublicKeys.parse(path.read_text())
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    except ValueError:
        raise UsageError(
            f"{path} does not have the public keys of a vault", hint="`gusset audit public-key` prints them"
        ) from None


def verify_by_public_keys(
    keys: PublicKeys, checkpoint_files: Sequence[Path], exported: Path | None
) -> VerificationReport:
    """Check the signatures of checkpoints, and compare them with an exported log, if there is one.

    Raises:
        UsageError: a file holds no checkpoint, or is not an exported log.
    """
    sources = {str(path): given_checkpoints(path) for path in checkpoint_files}
    wanted = {point.seq for points in sources.values() for point in points}
    walk, problems, hashes = ChainWalk(keys.vault), list[str](), dict[int, bytes]()
    for record in () if exported is None else _exported(exported):
        if (problem := walk.follow(record, None)) is not None:
            problems.append(problem)
        if record.seq in wanted:
            hashes[record.seq] = record.hash
    length = walk.head.seq
    comparison = CheckpointComparison(
        public_keys=keys,
        is_lost=walk.state.epochs.has_lost,
        records=None if exported is None else length,
        hashes=hashes,
    )
    for source, points in sources.items():
        problems += comparison.problems(source, points)
    if exported is not None and length > max(wanted):
        problems.append(f"no checkpoint vouches for the records after {max(wanted)}")
    return VerificationReport(length, len(wanted), f"{length}:{walk.head.hash.hex()}", tuple(problems))


def _exported(path: Path) -> Iterator[AuditRecord]:
    with path.open("rb") as file:
        for line in file:
            try:
                yield AuditRecord.parse(line)
            except ValueError:
                raise UsageError(
                    f"{path} is not an exported audit log", hint="`gusset audit export` prints one"
                ) from None
