"""`gusset exec -- CMD`: any command with chosen secrets, and nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import Cli, leaks_in

VALUE = b"s3cr3t-v4lue-of-exec\nsecond line"


@pytest.fixture(autouse=True)
def stored(gusset: Cli) -> None:
    gusset("secret", "set", "token", "--exact", input=VALUE)
    gusset("secret", "set", "other", input=b"another-secret-value")


def python(script: str) -> list[str]:
    return [sys.executable, "-c", script]


def test_secrets_are_files_in_memory_for_one_account(gusset: Cli) -> None:
    """A file of mode 0400 in a folder of mode 0700, on a file system in memory, exact to the byte."""
    script = (
        "import os, stat, subprocess; d = os.environ['GUSSET_SECRETS_DIR']; f = os.path.join(d, 'token');"
        "print(oct(stat.S_IMODE(os.stat(d).st_mode)), oct(stat.S_IMODE(os.stat(f).st_mode)), os.listdir(d));"
        "print(subprocess.check_output(['stat', '-f', '-c', '%T', d]).decode().strip());"
        "print(open(f, 'rb').read()[::-1].hex()); print(d)"
    )
    lines = gusset("exec", "--secret", "token", "--", *python(script)).stdout.decode().splitlines()

    assert lines[0] == "0o700 0o400 ['token']"
    assert lines[1] in ("tmpfs", "ramfs")
    assert bytes.fromhex(lines[2])[::-1] == VALUE
    assert not Path(lines[3]).exists()


def test_a_variable_holds_a_value_only_when_named(gusset: Cli) -> None:
    """`--env VARIABLE=NAME` sets it; nothing else of the vault is in the environment."""
    script = "import os; print(os.environ['THE_TOKEN'][::-1]); print('another' in str(os.environ))"

    done = gusset("exec", "--env", "THE_TOKEN=token", "--", *python(script))

    assert done.stdout.decode() == VALUE[::-1].decode() + "\nFalse\n"


def test_output_is_masked(gusset: Cli) -> None:
    """Values that the command prints, on either stream, do not come out."""
    script = (
        "import os, sys, base64; v = open(os.environ['GUSSET_SECRETS_DIR'] + '/token', 'rb').read();"
        "sys.stdout.buffer.write(b'out ' + v + b'\\n');"
        "sys.stderr.write('err ' + base64.b64encode(v).decode())"
    )
    done = gusset("exec", "--secret", "token", "--", *python(script))

    assert done.stdout == b"out ***\n"
    assert done.stderr == b"err ***"


def test_the_exit_status_is_the_commands(gusset: Cli) -> None:
    """Its status, or 128 and the signal that ended it."""
    gusset("exec", "--secret", "token", "--", *python("raise SystemExit(42)"), status=42)
    gusset("exec", "--secret", "token", "--", *python("import os; os.kill(os.getpid(), 15)"), status=143)


def test_missing_secrets_are_listed_together(gusset: Cli) -> None:
    """Nothing is run, and one message names all that lack."""
    done = gusset(
        "exec", "--secret", "token", "--secret", "a", "--env", "b", "--", "touch", "/nonexistent", status=5
    )

    assert b"a, b" in done.stderr and b"gusset secret set a" in done.stderr


@pytest.mark.parametrize(
    "args",
    [
        ["--", "true"],
        ["--secret", "token"],
        ["--secret", "token", "--", "no-such-command-here"],
        ["--env", "A=B=token", "--", "true"],
        ["--env", "=token", "--", "true"],
    ],
    ids=["no secret", "no command", "unknown command", "two equals signs", "no variable"],
)
def test_wrong_calls(gusset: Cli, args: list[str]) -> None:
    """Each is exit status 2, with what to do."""
    assert gusset("exec", *args, status=2).stderr


def test_the_folder_is_gone_when_gusset_is_killed(gusset: Cli) -> None:
    """`kill -9` of gusset leaves no file behind: a reaper sees its pipe close."""
    script = "import os, sys, time; print(os.environ['GUSSET_SECRETS_DIR'], flush=True); time.sleep(60)"
    command = [sys.executable, "-m", "gusset", "exec", "--secret", "token", "--", *python(script)]
    with subprocess.Popen(
        command, env=gusset.environ, stdout=subprocess.PIPE, start_new_session=True
    ) as process:
        assert process.stdout
        folder = Path(process.stdout.readline().decode().strip())
        assert (folder / "token").exists()

        process.kill()
        process.wait()
        _until(lambda: not folder.exists())
        os.killpg(process.pid, signal.SIGKILL)  # the command itself


def test_a_signal_that_comes_first_reaches_the_command_too(gusset: Cli, tmp_path: Path) -> None:
    """SIGTERM between gusset's start and the command's first line ends both, and leaves no orphan."""
    started = tmp_path / "started"
    script = f"import os, time; open({str(started)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    command = [sys.executable, "-m", "gusset", "exec", "--secret", "token", "--", *python(script)]
    for _ in range(5):
        started.unlink(missing_ok=True)
        with subprocess.Popen(command, env=gusset.environ) as process:
            while not (started.exists() and started.read_text()) and process.poll() is None:
                time.sleep(0.001)
            process.terminate()  # before gusset has gone on to copying output
            assert process.wait(30) == 128 + 15


def test_a_signal_reaches_the_command(gusset: Cli) -> None:
    """SIGTERM to gusset is SIGTERM to the command, whose own ending counts."""
    script = (
        "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(7));"
        "print('up', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-m", "gusset", "exec", "--secret", "token", "--", *python(script)]
    with subprocess.Popen(command, env=gusset.environ, stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        process.terminate()
        assert process.wait(30) == 7


def test_interactive_output_is_not_held_back(gusset: Cli) -> None:
    """A prompt without a newline arrives while the command still waits."""
    script = "import sys, time; print('Password: ', end='', flush=True); time.sleep(60)"
    command = [sys.executable, "-m", "gusset", "exec", "--secret", "token", "--", *python(script)]
    with subprocess.Popen(command, env=gusset.environ, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert os.read(process.stdout.fileno(), 100) == b"Password: "
        process.terminate()


def test_delivery_is_in_the_audit_log(gusset: Cli) -> None:
    """Who got what, in which version; never the value."""
    gusset("exec", "--secret", "token", "--", "true")

    record = gusset("audit", "show", "--action", "secret.deliver", "--output", "json").stdout

    assert b'"token": 1' in record
    assert not leaks_in(record, VALUE)


def _until(condition: object) -> None:
    assert callable(condition)
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)
