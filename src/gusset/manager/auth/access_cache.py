"""Remembers authenticated keys between requests, until access changes in the vault, for minutes at most."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gusset.vault.greenlets import wait
from gusset.vault.services.access_keys import KeyInfo
from gusset.vault.services.deployments import Grant
from gusset.vault.services.person import Person, TeamInfo
from gusset.vault.storage.signed_rows import Right
from gusset.vault.wiring import Vault

POLL = 0.2  # seconds until a change by another process is noticed; within a second is promised
MAX_KEYS = 10_000
MAX_AGE = 300.0  # seconds until a key's row is read and verified again, whatever the database says of changes
_EARLIEST, _LATEST = 0.5, 0.95  # fractions of `MAX_AGE` at which that happens, spread over the keys


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownKey:
    """A valid key with its owner: a person with their teams, or a deployment's grant.

    `rights` are the rows on which the owner's rights rest, the key's own among them.
    """

    info: KeyInfo
    scopes: frozenset[str] = frozenset()
    person: Person | None = None
    teams: Sequence[TeamInfo] = ()
    grant: Grant | None = None
    rights: tuple[Right, ...]


@dataclass(frozen=True, slots=True)
class _Entry:
    known: KnownKey
    until: float


@dataclass(frozen=True, slots=True)
class _Reading:
    """A read of the generation that began at `began`, after `changes` changes in this process.

    `done` becomes true, or false if the read failed.
    """

    began: float
    changes: int
    done: asyncio.Future[bool]


class AccessCache:
    """Known keys by hash, and the deployments that declare each secret.

    Any change to a key, person, team or deployment empties it. The generation that tells of it is not signed:
    somebody who writes to the database could put it back, so no key is known for longer than `MAX_AGE`.
    Not thread-safe: for the event loop's thread, in a greenlet.
    """

    def __init__(self, vault: Vault) -> None:
        self._vault = vault
        self._poller = vault.change_poller()
        self._stored = ""  # the vault's generation of access, as it was last read
        self._generation = 0
        self._changes, self._next_poll = -1, 0.0
        self._reading: _Reading | None = None
        self._keys: dict[bytes, _Entry] = {}
        self._declared: dict[str, Mapping[str, Sequence[str]]] = {}

    def refresh(self) -> None:
        """Empty the cache if access changed. Checks after each such commit here, else each `POLL` seconds."""
        if self.is_current:
            return
        reading = self._reading
        if reading is not None and self._counts(reading) and wait(reading.done):
            return
        self._read()

    def _counts(self, reading: _Reading) -> bool:
        """Whether what another request reads now is new enough for a request that comes now."""
        return reading.changes == self._vault.access_changes() and time.monotonic() < reading.began + POLL

    def _read(self) -> None:
        now, changes = time.monotonic(), self._vault.access_changes()
        if self._vault.reads_wait:  # other requests run meanwhile
            reading = self._reading = _Reading(now, changes, asyncio.get_running_loop().create_future())
            succeeded = False
            try:
                stored = self._poller.generation()
                succeeded = True
            finally:
                if self._reading is reading:
                    self._reading = None
                reading.done.set_result(succeeded)
        else:
            stored = self._poller.generation()
        changed_here = changes != self._changes
        self._changes, self._next_poll = changes, now + POLL
        if changed_here or stored != self._stored or len(self._keys) > MAX_KEYS:
            self._stored = stored
            self._generation += 1
            self._keys.clear()
            self._declared.clear()

    @property
    def is_current(self) -> bool:
        """Whether `refresh` would have nothing to do."""
        return self._vault.access_changes() == self._changes and time.monotonic() < self._next_poll

    @property
    def is_recent(self) -> bool:
        """Whether it is current, or was until `POLL` seconds ago and is being refreshed.

        Still within the second that is promised, and nothing waits for the database.
        """
        if self.is_current:
            return True
        reading = self._reading
        return (
            reading is not None
            and reading.changes == self._changes == self._vault.access_changes()
            and time.monotonic() < self._next_poll + POLL
        )

    def get(self, hashed: bytes) -> KnownKey | None:
        """The key with this hash, unless it has expired since. Call it while the cache is recent."""
        entry = self._keys.get(hashed)
        # The time of the next poll is less than `POLL` from now, and takes no reading of the clock.
        if entry is None or self._next_poll >= entry.until:
            return None
        known = entry.known
        if known.info.expires_at is None:
            return known
        return known if known.info.is_valid(self._vault.now()) else None

    @property
    def generation(self) -> int:
        """Changes when the cache is emptied."""
        return self._generation

    def add(self, hashed: bytes, known: KnownKey, *, generation: int) -> None:
        """Add a key that was read when the cache had this generation, unless access has changed since."""
        if generation == self._generation:
            age = MAX_AGE * random.uniform(_EARLIEST, _LATEST)  # noqa: S311  # spreads work, hides nothing
            self._keys[hashed] = _Entry(known, time.monotonic() + age)

    def deployments_by_secret(self, team_id: str) -> Mapping[str, Sequence[str]]:
        """Folded secret name -> the deployments of the team that declare it, as of the last `refresh`."""
        known = self._declared.get(team_id)
        if known is None:
            generation = self._generation
            known = self._vault.deployments.by_declared_secret(team_id)
            if generation == self._generation:
                self._declared[team_id] = known
        return known

    def close(self) -> None:
        self._poller.close()
