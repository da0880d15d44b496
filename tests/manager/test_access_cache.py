"""What the manager reads to know that nobody's access has changed, and for how long it relies on that."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gusset.errors import Unreachable
from gusset.manager.auth.access_cache import MAX_AGE, AccessCache, KnownKey
from gusset.manager.auth.authenticator import Authenticator
from gusset.vault import open_vault
from gusset.vault.greenlets import GreenletPool, wait
from gusset.vault.services.access_keys import KeyInfo
from gusset.vault.wiring import Vault
from tests.vault.conftest import run_sql, settings_in


class SlowVault:
    """The part of a vault on a server that the cache uses. Each read waits until the test ends it."""

    reads_wait = True

    def __init__(self) -> None:
        self.changes = 0
        self.reads: list[asyncio.Future[str]] = []

    def access_changes(self) -> int:
        return self.changes

    def change_poller(self) -> SlowVault:
        return self

    def generation(self) -> str:
        self.reads.append(asyncio.get_running_loop().create_future())
        return wait(self.reads[-1])


@pytest.fixture
def vault(monkeypatch: pytest.MonkeyPatch) -> SlowVault:
    monkeypatch.setattr("gusset.manager.auth.access_cache.POLL", 30.0)
    return SlowVault()


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def run(vault: SlowVault, test: Callable[[Callable[[], None], list[Any]], Any]) -> None:
    """Run `test` with a function that begins a request, and the list of those that have ended."""

    async def main() -> None:
        vault_: Any = vault
        cache, pool, ended = AccessCache(vault_), GreenletPool(), []

        def refresh() -> bool:
            try:
                cache.refresh()
            except Unreachable:
                return False
            return True

        await test(lambda: pool.start(refresh, on_done=ended.append), ended)

    asyncio.run(main())


def test_requests_that_come_at_once_share_one_read(vault: SlowVault) -> None:
    async def test(begin: Callable[[], None], ended: list[bool]) -> None:
        for _ in range(32):
            begin()
        assert len(vault.reads) == 1
        vault.reads[0].set_result("a")
        await settled()
        assert ended == [True] * 32
        begin()
        assert len(vault.reads) == 1

    run(vault, test)


def test_a_request_after_a_change_here_does_not_take_what_was_read_before(vault: SlowVault) -> None:
    async def test(begin: Callable[[], None], ended: list[bool]) -> None:
        begin()
        vault.changes += 1
        begin()
        assert len(vault.reads) == 2
        vault.reads[0].set_result("before")
        await settled()
        assert ended == [True]
        vault.reads[1].set_result("after")
        await settled()
        assert ended == [True, True]

    run(vault, test)


def test_a_read_that_fails_fails_only_its_own_request(vault: SlowVault) -> None:
    async def test(begin: Callable[[], None], ended: list[bool]) -> None:
        begin()
        begin()
        vault.reads[0].set_exception(Unreachable("the database does not respond"))
        await settled()
        assert ended == [False]
        vault.reads[1].set_result("a")
        await settled()
        assert ended == [False, True]

    run(vault, test)


def test_the_cache_is_recent_while_it_is_refreshed_in_time(
    vault: SlowVault, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was read is used for at most twice the time after which it is read again."""
    now = 100.0
    monkeypatch.setattr("gusset.manager.auth.access_cache.time.monotonic", lambda: now)

    async def main() -> None:
        nonlocal now
        vault_: Any = vault
        cache, pool = AccessCache(vault_), GreenletPool()

        def begin() -> None:
            pool.start(cache.refresh, on_done=lambda _: None)

        begin()
        assert not cache.is_recent
        vault.reads[0].set_result("a")
        await settled()
        assert cache.is_recent
        now += 31.0
        assert not cache.is_recent
        begin()
        assert (cache.is_current, cache.is_recent) == (False, True)
        vault.changes += 1
        assert not cache.is_recent
        vault.changes -= 1
        now += 30.0
        assert not cache.is_recent
        vault.reads[1].set_result("a")
        await settled()

    asyncio.run(main())


def deployment_token(vault: Vault) -> tuple[KeyInfo, str]:
    """A new deployment's token: what is known of it, and the header of a request with it."""
    _, info, token = vault.deployments.register(vault.default_team_id, "d", ["x"], actor="test")
    return info, f"Bearer {token.reveal().decode()}"


def test_a_revoked_token_is_refused_after_minutes_though_the_change_was_hidden(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody who writes to the database puts the row back that tells managers of the revocation."""
    now = 1000.0
    monkeypatch.setattr("gusset.manager.auth.access_cache.time.monotonic", lambda: now)
    settings = settings_in(home)
    with open_vault(settings) as vault, open_vault(settings) as elsewhere:
        info, header = deployment_token(vault)
        cache = AccessCache(vault)
        authenticator = Authenticator(vault, cache)
        assert authenticator.knows_key(header)
        [(before,)] = run_sql(settings.database, "SELECT value FROM meta WHERE key = 'access'")
        elsewhere.access_keys.revoke(info.prefix, actor="test", allowed=lambda _: True)
        run_sql(settings.database, "UPDATE meta SET value = ? WHERE key = 'access'", before)
        now += 1.0
        assert authenticator.knows_key(header)
        assert authenticator.known_grant(header.encode()) is not None
        now += MAX_AGE - 1.0
        cache.refresh()
        assert authenticator.known_grant(header.encode()) is None
        assert not authenticator.knows_key(header)
        cache.close()


def test_a_change_of_access_made_here_counts_though_the_change_was_hidden(home: Path) -> None:
    """Nor is a key added that was read before the change."""
    settings = settings_in(home)
    with open_vault(settings) as vault:
        info, header = deployment_token(vault)
        cache = AccessCache(vault)
        authenticator = Authenticator(vault, cache)
        assert authenticator.knows_key(header)
        generation = cache.generation
        [(before,)] = run_sql(settings.database, "SELECT value FROM meta WHERE key = 'access'")
        vault.access_keys.revoke(info.prefix, actor="test", allowed=lambda _: True)
        run_sql(settings.database, "UPDATE meta SET value = ? WHERE key = 'access'", before)
        cache.refresh()
        cache.add(b"hash", KnownKey(info=info, rights=()), generation=generation)
        assert cache.get(b"hash") is None
        assert not authenticator.knows_key(header)
        cache.close()


def test_keys_that_became_known_at_once_are_not_read_again_at_once(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thousands of replicas show their tokens in the seconds after a change: reading them again spreads."""
    now = 1000.0
    monkeypatch.setattr("gusset.manager.auth.access_cache.time.monotonic", lambda: now)
    with open_vault(settings_in(home)) as vault:
        known = KnownKey(info=deployment_token(vault)[0], rights=())
        cache = AccessCache(vault)
        cache.refresh()
        hashes = [bytes([number]) for number in range(200)]
        for hashed in hashes:
            cache.add(hashed, known, generation=cache.generation)

        def left_after(seconds: float) -> int:
            nonlocal now
            now = 1000.0 + seconds
            cache.refresh()
            return sum(cache.get(hashed) is not None for hashed in hashes)

        assert left_after(0.4 * MAX_AGE) == 200
        assert 20 < left_after(0.7 * MAX_AGE) < 180
        assert left_after(MAX_AGE) == 0
        cache.close()
