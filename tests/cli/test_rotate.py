"""`gusset secret rotate` with the embedded vault, and a provider's program that fails in every way."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Cli, leaks_in
from tests.serving.conftest import eventually, is_running

pytestmark = pytest.mark.slow

PROGRAM = Path(__file__).parents[1] / "rotation" / "provider.py"
FIRST = b"first-value-Zx81QqLmN4vTtYbWs93"

# gusset with a short lease of rotations, killed at its Nth call to the store: before it, or after.
_KILLED = """
import os, signal, sys
from gusset.cli.stored_rotations import StoredRotations
from gusset.vault.services import provider_rotations

provider_rotations.LEASE_SECONDS = 0
calls = 0

def killing(method):
    def call(*args, **kwargs):
        global calls
        calls += 1
        if os.environ.get("KILL") == f"before {calls}":
            os.kill(os.getpid(), signal.SIGKILL)
        result = method(*args, **kwargs)
        if os.environ.get("KILL") == f"after {calls}":
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return call

for name in ("begin", "set", "advance", "revoked", "finish"):
    setattr(StoredRotations, name, killing(getattr(StoredRotations, name)))

from gusset.cli.main import main
main()
"""


class Provider:
    """The program with its file of credentials, and the command that rotates `db` with it."""

    def __init__(self, gusset: Cli, file: Path) -> None:
        self._gusset = gusset
        self._file = file
        self._file.write_text(json.dumps({"live": {"first": FIRST.decode()}, "happened": [], "calls": []}))
        gusset("secret", "set", "db", input=FIRST)

    def rotate(self, *options: str, faults: str = "", status: int = 0) -> str:
        """Rotate; returns all that was printed, which holds no value."""
        done = self._gusset(*self._words(*options), status=status, **self._environ(faults))
        printed = done.stdout + done.stderr
        for value in self.live.values():
            assert not leaks_in(printed, value.encode())
        return printed.decode()

    def start(self, *options: str, faults: str) -> subprocess.Popen[bytes]:
        """Start a rotation; returns when the program runs."""
        process = subprocess.Popen(
            [sys.executable, "-m", "gusset", *self._words(*options)],
            env=self._gusset.environ | self._environ(faults),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        eventually(lambda: self.calls)
        return process

    def run_killed(self, kill: str, faults: str = "") -> int:
        """Rotate with a gusset that is killed there; returns its status."""
        command = [sys.executable, "-c", _KILLED, *self._words()]
        environ = self._gusset.environ | self._environ(faults) | {"KILL": kill}
        return subprocess.run(command, env=environ, capture_output=True, timeout=60).returncode

    def _words(self, *options: str) -> Sequence[str]:
        command = ["--with", f"{sys.executable} {PROGRAM}", "--overlap", "1s", "--step-timeout", "5s"]
        return ["secret", "rotate", "db", *command, *options]

    def _environ(self, faults: str) -> dict[str, str]:
        return {"PROVIDER": str(self._file), "FAULTS": faults}

    @property
    def live(self) -> dict[str, str]:
        """The credentials that work, by handle."""
        found: dict[str, str] = json.loads(self._file.read_text())["live"]
        return found

    @property
    def calls(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self._file.read_text())["calls"]
        return found

    def check_rotated(self) -> None:
        """One credential lives, the secret's current value; it is the second version; the log is intact."""
        [value] = self.live.values()
        exported = self._gusset("secret", "export", "db", "--yes").stdout.decode()
        assert value in exported and FIRST.decode() not in exported
        history = json.loads(self._gusset("secret", "history", "db", "--output", "json").stdout)["versions"]
        assert [version["version"] for version in history] == [1, 2]
        self._gusset("audit", "verify")


@pytest.fixture
def provider(gusset: Cli, tmp_path: Path) -> Iterator[Provider]:
    yield Provider(gusset, tmp_path / "provider.json")


def test_a_rotation_from_create_to_revoke(provider: Provider, gusset: Cli) -> None:
    """The provider makes a credential, verifies it, and revokes the one before by its handle."""
    printed = provider.rotate("--current-handle", "first")

    assert "db: rotated (version 2), 1 credential revoked" in printed
    assert [call["step"] for call in provider.calls] == ["create", "verify", "revoke"]
    assert provider.calls[2]["handle"] == "first"
    provider.check_rotated()
    records = json.loads(gusset("audit", "show", "--output", "json").stdout)["records"]
    done = [each["action"] for each in records if each["action"].startswith("rotation.")]
    assert sorted(done) == sorted(
        ["rotation." + each for each in ("begin", "set", "advance", "advance", "revoke", "finish")]
    )


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("create:fail", "exit status 1"),
        ("create:print-and-fail", "exit status 1"),
        ("create:rubbish", "is not JSON"),
        ("create:large", "too large"),
        ("verify:fail", "exit status 1"),
        ("verify:signal", "(SIGTERM)"),
        ("revoke:fail", "exit status 1"),
        ("revoke:not-mine", "does not have the step revoke"),
    ],
)
def test_a_step_that_fails_is_continued(provider: Provider, fault: str, message: str) -> None:
    """Exit status 9, nothing that may be a value is printed, and the same command continues."""
    printed = provider.rotate("--current-handle", "first", faults=fault, status=9)
    assert printed.count(message) == 1 and "db: failed" in printed
    provider.rotate(faults=fault)
    assert len({call["rotation"] for call in provider.calls}) == 1
    provider.check_rotated()


@pytest.mark.parametrize("step", ["create", "verify", "revoke"])
def test_a_step_that_hangs_is_stopped(provider: Provider, step: str) -> None:
    """The program is killed at its timeout, and the rotation can be continued at once."""
    arguments = ["--current-handle", "first"]
    assert "after 5 seconds" in provider.rotate(*arguments, faults=f"{step}:hang", status=9)
    provider.rotate(faults=f"{step}:hang")
    provider.check_rotated()


def test_what_goes_well_despite_the_program(provider: Provider) -> None:
    """It fails for now, has no `verify`, prints the value, leaves a process: one run suffices, and masks it."""
    faults = "create:later verify:not-mine create:print revoke:background"
    printed = provider.rotate("--current-handle", "first", faults=faults)
    assert "provider: this failed for now" in printed and "provider: the value is *** in" in printed
    provider.check_rotated()


PRINTED = [
    ("verify:print-and-later", 0),
    ("verify:print-and-fail", 9),
    ("revoke:print-and-later", 0),
    ("revoke:print-and-fail", 9),
    ("revoke:print-and-hang", 9),
    ("create:output create:print-and-later", 0),
    ("create:output create:print-and-fail", 9),
    ("create:base64 create:print-and-later", 0),
]


@pytest.mark.parametrize(("faults", "status"), PRINTED)
def test_a_new_value_of_words_is_masked_when_a_step_prints_it(
    provider: Provider, faults: str, status: int
) -> None:
    """From the step that has returned the value on, however a step ends; `rotate` searches what is printed."""
    printed = provider.rotate("--current-handle", "first", faults=f"create:words {faults}", status=status)
    assert printed.count("provider: login with *** failed") == 1
    assert "horse staple battery" in provider.live.values()


def test_no_part_of_a_value_is_printed_when_the_messages_are_cut(provider: Provider) -> None:
    """Of more than 64 KiB, only whole lines are shown: the start of one may be the end of a value."""
    printed = provider.rotate("--current-handle", "first", faults="create:words verify:print-in-long-line")
    assert "battery" not in printed
    assert "provider: ...\nprovider: login failed\n" in printed


def test_a_wait_for_the_first_use_may_be_of_any_length(provider: Provider) -> None:
    """Also one that would end after the year 9999, the last one of a date."""
    printed = provider.rotate("--current-handle", "first", "--first-use-timeout", "999999999d")
    assert "db: rotated (version 2), 1 credential revoked" in printed


def test_a_secret_that_the_program_does_not_rotate_is_skipped(provider: Provider, gusset: Cli) -> None:
    """Exit status 64 at `create` leaves the secret as it was, without an unfinished rotation."""
    printed = provider.rotate("--output", "json", faults="create:not-mine")
    assert '"outcome": "skipped"' in printed
    assert json.loads(gusset("secret", "rotate", "--list", "--output", "json").stdout) == {"rotations": []}


KILLS = [
    ("before 1", ""),  # begin
    ("after 1", ""),
    ("", "create:kill-before"),
    ("", "create:kill-after"),
    ("", "verify:kill-before"),
    ("before 2", ""),  # set
    ("after 2", ""),
    ("before 2", ""),  # the first advance, now that set is done
    ("after 2", ""),
    ("before 2", ""),
    ("after 2", ""),
    ("", "revoke:kill-before"),
    ("", "revoke:kill-after"),
    ("before 2", ""),  # revoked
    ("after 2", ""),
    ("before 2", ""),  # finish
    ("after 2", ""),
]


def test_a_rotation_continues_after_a_kill_at_every_step(provider: Provider, gusset: Cli) -> None:
    """Each run continues where the one before was killed: one rotation, one new credential, one version."""
    provider.rotate("--current-handle", "first", faults="create:fail", status=9)
    faults = ""
    for kill, fault in KILLS:
        faults = f"{faults} {fault}".strip()
        assert provider.run_killed(kill, faults) == -9, (kill, fault)
    assert len({call["rotation"] for call in provider.calls}) == 1
    provider.check_rotated()
    assert json.loads(gusset("secret", "rotate", "--list", "--output", "json").stdout) == {"rotations": []}


def test_a_second_rotation_at_once_is_refused(provider: Provider, gusset: Cli) -> None:
    """While one process rotates a secret, another gets status 6."""
    first = provider.start("--current-handle", "first", "--step-timeout", "60s", faults="create:hang")
    assert "another process rotates db" in provider.rotate(status=6)
    first.send_signal(signal.SIGINT)
    first.communicate(timeout=60)
    assert first.returncode == 130


def test_the_program_ends_with_gusset(provider: Provider) -> None:
    """Killed with it: it would run beside its next attempt."""
    first = provider.start("--current-handle", "first", faults="create:hang")
    first.kill()
    first.communicate()
    [call] = provider.calls
    eventually(lambda: not is_running(call["pid"]))


def test_ctrl_c_ends_the_program_and_lets_the_next_run_continue(provider: Provider) -> None:
    """Status 130; the next run need not wait."""
    first = provider.start("--current-handle", "first", faults="create:hang")
    first.send_signal(signal.SIGINT)
    first.communicate(timeout=60)
    assert first.returncode == 130
    [call] = provider.calls
    assert not is_running(call["pid"])
    provider.rotate(faults="create:hang")
    provider.check_rotated()


def test_a_value_that_is_set_during_a_rotation(provider: Provider, gusset: Cli) -> None:
    """Nothing is revoked until that rotation is cancelled; the next one revokes all earlier credentials."""
    provider.rotate("--current-handle", "first", faults="revoke:fail", status=9)
    gusset("secret", "set", "db", input=b"a value that a person has set")
    assert "got another value (version 3)" in provider.rotate(status=6)
    assert len(provider.live) == 2
    gusset("secret", "rotate", "db", "--cancel")
    gusset("secret", "rotate", "db", "--cancel", status=5)
    assert "rotated (version 4), 2 credentials revoked" in provider.rotate()
    assert len(provider.live) == 1
    gusset("audit", "verify")


def test_due_rotates_all_that_is_due_and_goes_on_after_a_failure(provider: Provider, gusset: Cli) -> None:
    """`--due` rotates what its interval or expiry date demands, and goes on after a failure."""
    gusset("secret", "set", "other", input=b"another value")
    assert "nothing is due" in provider.rotate("--due")
    gusset("secret", "annotate", "db", "--rotate-every", "1s")

    def listed() -> list[Any]:
        found = json.loads(gusset("secret", "rotate", "--list", "--output", "json").stdout)["rotations"]
        return [(each["name"], each["rotate_every"], each["due"]) for each in found]

    eventually(lambda: listed() == [("db", 1, "interval")])
    gusset("secret", "annotate", "other", "--expires", "2020-01-01")

    command = [*provider._words("--due", "--output", "json")]
    command.remove("db")
    done = gusset(*command, status=9, **provider._environ("create:fail"))
    results = {each["name"]: each for each in json.loads(done.stdout)["rotations"]}
    assert (results["db"]["outcome"], results["other"]["outcome"]) == ("failed", "rotated")
    assert results["db"]["code"] == "provider_failed"
    gusset("secret", "annotate", "db", "--rotate-every", "never")
    done = gusset(*command, **provider._environ("create:fail"))  # continued, though not due by date
    assert [each["outcome"] for each in json.loads(done.stdout)["rotations"]] == ["rotated"]


@pytest.mark.parametrize(
    "words",
    [
        ["db"],
        ["--with", "true"],
        ["db", "--with", ""],
        ["db", "--with", "a 'b"],
        ["--due", "--list"],
        ["--cancel"],
        ["db", "--cancel", "--with", "x"],
        ["db", "x", "--with", "true", "--current-handle", "h"],
        ["db", "--with", "true", "--overlap", "1"],
        ["db", "--with", "true", "--overlap", "0s"],
        ["db", "--with", "true", "--overlap", "366d"],
        ["db", "--with", "/no/such/program"],
    ],
)
def test_wrong_calls_are_refused(gusset: Cli, words: Sequence[str]) -> None:
    """Status 2, before anything is changed."""
    gusset("secret", "set", "db", input=FIRST)
    gusset("secret", "rotate", *words, status=2)


def test_a_secret_that_does_not_exist(gusset: Cli) -> None:
    """Its first value is set by a person."""
    gusset("secret", "rotate", "db", "--with", "true", status=5)
