"""Environments made by the real uv from an index on loopback; each kind of failure and its exit status."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gusset.environments.plan import FileLocation, PythonChoice, other_python
from gusset.environments.terminal_output import TerminalOutput
from gusset.environments.uv import ProgressSink, Uv
from gusset.environments.uv_failures import failure
from gusset.errors import ConfigInvalid, GussetError, outcome_of
from tests.environments.conftest import Index, Making
from tests.environments.packages import project, source_archive, wheel


def names(site: Path) -> set[str]:
    return {each.stem for each in site.glob("*.py") if not each.name.startswith("_")}


def version(site: Path, module: str) -> str:
    return (site / f"{module}.py").read_text().split("'")[1]


def test_the_models_requirements_come_first(make: Making, index: Index, tmp_path: Path) -> None:
    """What the worker needs and Truss gives is added in versions that fit, or not at all if it is there."""
    for each in ("1.0", "2.0"):
        index.add(wheel(tmp_path, "pinned", each))
        index.add(wheel(tmp_path, "serving", each, requires=[f"pinned=={each}"]))
    index.add(wheel(tmp_path, "usual"))
    make.worker, make.truss = ("serving>=1", "pinned"), ("usual", "pinned>=2")

    site = make("pinned<2")

    assert names(site) == {"pinned", "serving", "usual"}
    assert (version(site, "pinned"), version(site, "serving")) == ("1.0", "1.0")
    assert make.warnings == []
    assert make.shown == b""


def test_requirements_of_every_kind_are_installed(make: Making, index: Index, tmp_path: Path) -> None:
    """Links, constraints, hashes, local folders and editable ones, all from lines as in pip."""
    index.add(wheel(tmp_path, "limited", "1.0"))
    index.add(wheel(tmp_path, "limited", "2.0"))
    wheel(tmp_path / "links", "linked")
    project(tmp_path / "lib", "local")
    project(tmp_path / "live", "live")
    archive = source_archive(tmp_path / "archives", "archived")
    (tmp_path / "limits.txt").write_text("limited<2\n")

    site = make(
        "-c limits.txt",
        "--find-links ./links",
        "linked",
        "limited",
        "./lib",
        "-e ./live",
        f"archived @ {archive.as_uri()}",
    )

    assert names(site) >= {"limited", "linked", "local", "archived"}
    assert version(site, "limited") == "1.0"


UNMET = [
    ("absent-package", "was not found in the package registry"),
    ("alpha==9", "there is no version of alpha==9"),
    ("alpha==1\n", "depend on alpha>=2"),
]


@pytest.mark.parametrize(("line", "words"), UNMET)
def test_requirements_that_cannot_be_met_are_errors_of_the_config(
    make: Making, index: Index, tmp_path: Path, line: str, words: str
) -> None:
    """An unknown package, a version that does not exist, a conflict: uv's words and the line; status 3."""
    index.add(wheel(tmp_path, "alpha", "1"))
    index.add(wheel(tmp_path, "alpha", "2"))
    index.add(wheel(tmp_path, "beta", requires=["alpha>=2"]))
    lines = ["beta", line.strip()] if line.endswith("\n") else ["# nothing", line]

    with pytest.raises(ConfigInvalid) as error:
        make(*lines)
    [problem] = error.value.problems
    assert words in problem.message
    assert (problem.file, problem.line) in (
        ("config.yaml", 2),
        ("config.yaml", 1 if line.endswith("\n") else 2),
    )
    assert outcome_of(error.value).exit == 3


def test_a_hash_that_differs_is_an_error_of_the_config(make: Making, index: Index, tmp_path: Path) -> None:
    """A file that is not the one that was meant is not installed."""
    index.add(wheel(tmp_path, "alpha"))
    with pytest.raises(ConfigInvalid) as error:
        make(f"alpha==1.0 --hash=sha256:{'0' * 64}")
    assert "Hash mismatch" in error.value.problems[0].message


def test_a_conflict_with_the_worker_names_both_sides(make: Making, index: Index, tmp_path: Path) -> None:
    """The version that the model has, its line, and what the worker needs."""
    index.add(wheel(tmp_path, "alpha", "1.0"))
    make.worker = ("alpha>=2",)
    with pytest.raises(ConfigInvalid) as error:
        make("alpha")
    assert error.value.message == "the model asks for alpha 1.0, but gusset's worker needs alpha>=2"
    assert error.value.problems[0].line == 1


def test_an_indirect_conflict_with_the_worker_has_the_resolvers_words(
    make: Making, index: Index, tmp_path: Path
) -> None:
    """The worker's package needs another release of what the model pins."""
    index.add(wheel(tmp_path, "alpha", "1.0"))
    index.add(wheel(tmp_path, "needed", requires=["alpha>=2"]))
    make.worker = ("needed",)
    with pytest.raises(ConfigInvalid) as error:
        make("alpha")
    [problem] = error.value.problems
    assert "the model's requirements exclude what gusset's worker needs" in problem.message
    assert "needed" in problem.message
    assert problem.line == 1


def test_a_package_of_trusss_list_that_does_not_fit_is_left_out(
    make: Making, index: Index, tmp_path: Path
) -> None:
    """With a warning that has the resolver's words; the others are there."""
    index.add(wheel(tmp_path, "alpha", "1.0"))
    index.add(wheel(tmp_path, "unfit", requires=["alpha>=2"]))
    index.add(wheel(tmp_path, "fit"))
    make.truss = ("unfit", "fit")

    assert names(make("alpha")) == {"alpha", "fit"}
    [warning] = make.warnings
    assert warning.message == "unfit of Truss's list does not fit the requirements: it is left out"


def test_a_build_that_fails_is_a_failure_of_the_model(make: Making, index: Index, tmp_path: Path) -> None:
    """The backend's output is shown, and does not change the status: 9."""
    body = "raise SystemExit('error: gcc: No such file; Connection refused')"
    index.add(source_archive(tmp_path, "native", body=body))
    with pytest.raises(GussetError, match="does not build") as error:
        make("native")
    assert error.value.message.startswith("config.yaml:1: ")
    assert "gcc: No such file" in error.value.message
    assert "compiler" in str(error.value.hint)
    assert outcome_of(error.value).exit == 9


@pytest.mark.parametrize("damage", ["truncated", "garbage", "flipped"])
def test_a_broken_wheel_is_a_failure_of_the_model(
    make: Making, index: Index, tmp_path: Path, damage: str
) -> None:
    """A file that is cut off, not a zip file, or has a wrong checksum; status 9."""
    file = wheel(tmp_path, "alpha", code="x = 'content'\n")
    data = bytearray(file.read_bytes())
    data[data.index(b"content")] ^= 1
    file.write_bytes({"truncated": data[:120], "garbage": b"text", "flipped": data}[damage])
    index.add(file)
    with pytest.raises(GussetError, match="a package is broken") as error:
        make("alpha")
    assert outcome_of(error.value).exit == 9


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/simple", "http://nowhere.invalid/simple"])
def test_an_index_that_does_not_respond_is_unreachable(make: Making, url: str) -> None:
    """Refused connections and names that do not resolve; status 8."""
    make.environ["UV_DEFAULT_INDEX"] = url
    with pytest.raises(GussetError, match="does not respond") as error:
        make("alpha")
    assert outcome_of(error.value).exit == 8


def test_without_a_network_the_error_says_so(make: Making) -> None:
    """UV_OFFLINE and nothing in the cache; status 8, since the package may well exist."""
    make.environ["UV_OFFLINE"] = "1"
    with pytest.raises(GussetError, match="network was disabled") as error:
        make("alpha")
    assert outcome_of(error.value).exit == 8


def test_without_an_index_gussets_own_packages_are_used(make: Making, tmp_path: Path) -> None:
    """What the worker needs is copied from gusset's Python, native code too, with all that it depends on."""
    wheel(tmp_path / "links", "alpha")
    make.environ["UV_DEFAULT_INDEX"] = "http://127.0.0.1:9/simple"
    make.worker, make.truss = ("orjson", "httpx>=0.1"), ("pydantic", "no-such-package")

    site = make("--no-index", "--find-links ./links", "alpha")

    code = "import alpha, orjson, httpx, pydantic; print(orjson.dumps(pydantic.TypeAdapter(int).validate_python('1')))"
    python = str(make.folder / "environment" / "bin" / "python")
    done = subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "b'1'\n"
    assert not list(site.glob("no_such*"))
    make.worker = ("no-such-package",)
    with pytest.raises(GussetError, match="does not respond"):
        make("--no-index", "--find-links ./links", "alpha")


def test_pips_no_index_holds(make: Making, index: Index, tmp_path: Path) -> None:
    """With it no index is contacted, and packages come from the folders that are named."""
    wheel(tmp_path / "links", "alpha")
    index.add(wheel(tmp_path / "other", "beta"))
    make.environ["UV_NO_INDEX"] = "1"

    assert (make("--find-links ./links", "alpha") / "alpha.py").exists()
    with pytest.raises(GussetError, match="cannot be met"):
        make("--find-links ./links", "beta")


def test_without_the_machines_index_the_models_own_is_used(
    make: Making, private_index: Index, tmp_path: Path
) -> None:
    """A mirror that only the model names has what the worker needs as well."""
    private_index.add(wheel(tmp_path, "alpha"))
    private_index.add(wheel(tmp_path, "needed"))
    make.environ["UV_DEFAULT_INDEX"] = "http://127.0.0.1:9/simple"
    make.worker = ("needed",)

    assert names(make(f"--index-url {private_index.url}", "alpha")) == {"alpha", "needed"}


@pytest.mark.parametrize(
    ("message", "status"),
    [
        ("Failed to install: x.whl\n  cause: No space left on device (os error 28)", 11),
        ("Failed to build `x`\n\n [stderr]\n  cannot write: No space left on device", 11),
        ("Failed to fetch: https://h/x\n cause: HTTP status server error (503 Service Unavailable)", 8),
        ("Failed to fetch: https://h/x.whl\n cause: HTTP status client error (404 Not Found)", 3),
        ("No solution found\n hint: An index returned a 403 Forbidden error", 7),
        ("Failed to download and build `x`\n cause: Git operation failed\n cannot find remote ref v9", 3),
        ("Git operation failed\n fatal: unable to access 'https://h/': Could not resolve host: h", 8),
        ("Git operation failed\n cause: Git executable not found. Ensure that Git is installed", 11),
        ("Failed to download and build `x`\n cause: Failed to parse: pyproject.toml", 9),
        ("The wheel filename `x.whl` is invalid: Must have a version", 3),
        ("something else", 11),
    ],
)
def test_each_failure_has_its_exit_status(message: str, status: int) -> None:
    """The kinds that are hard to bring about, by uv's words."""
    error = failure(message, {"x": FileLocation(file="config.yaml", line=3)}, what="the environment")
    assert outcome_of(error).exit == status
    assert message in repr(vars(error)).replace("\\n", "\n")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_a_full_disk_is_an_error_of_the_machine(make: Making, index: Index, tmp_path: Path) -> None:
    """Status 11, and what frees space."""
    index.add(wheel(tmp_path, "large", code="x = 1\n" * 100_000))
    small = tmp_path / "environment"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(small)], check=False)
    if mounted.returncode != 0:
        pytest.skip("mount is not allowed here")
    try:
        with pytest.raises(GussetError, match="the disk is full") as error:
            make.installer().make(make.plan("large"), small / "attempt")
    finally:
        subprocess.run(["umount", str(small)], check=True)
    assert outcome_of(error.value).exit == 11
    assert "gusset env prune" in str(error.value.hint)


MISSING = PythonChoice(
    executable=sys.executable,
    version=(3, 99),
    written=(3, 99),
    location=FileLocation(file="config.yaml", line=2, key="python_version"),
)


def test_a_python_that_is_missing_is_replaced_by_the_nearest(make: Making) -> None:
    """With a warning that says which one the model runs on."""
    info = make.installer().make(make.plan(python=MISSING), make.folder / "environment")

    assert info.python_version.startswith("3.")
    warning = other_python(make.plan(python=MISSING), info.python_version)
    assert warning is not None
    assert f"there is no Python 3.99 here: the model runs on {info.python_version}" == warning.message
    assert warning.line == 2


def test_exact_makes_a_missing_python_an_error(make: Making) -> None:
    """`--python exact` takes no other; status 3."""
    exact = PythonChoice(
        executable=sys.executable, version=(3, 99), written=(3, 99), exact=True, location=MISSING.location
    )
    with pytest.raises(ConfigInvalid, match=r"no Python 3\.99") as error:
        make(python=exact)
    assert error.value.problems[0].line == 2


def test_a_python_that_uv_fetches_is_used(make: Making, tmp_path: Path) -> None:
    """uv is asked for the version if none is installed; here a stand-in for uv's download."""
    fake = tmp_path / "uv"
    fake.write_text(
        f'#!/bin/sh\n[ "$2" = find ] && exit 2\n'
        f'[ "$1" = venv ] && exec {make.program} venv --quiet --python {sys.executable} "$6"\n'
        f'exec {make.program} "$@"\n'
    )
    fake.chmod(0o755)
    make.program = str(fake)
    info = make.installer().make(make.plan(python=MISSING), make.folder / "environment")
    assert info.python_version.startswith(".".join(map(str, sys.version_info[:2])))


def test_the_installer_ends_with_its_process(tmp_path: Path) -> None:
    """Neither uv nor a build that it has started goes on when the process that started it is killed."""
    fake = tmp_path / "uv"
    fake.write_text(
        f"#!/bin/sh\nsleep 61 &\necho $! > {tmp_path}/pid.new; mv {tmp_path}/pid.new {tmp_path}/pid; sleep 60\n"
    )
    fake.chmod(0o755)
    code = (
        "import sys; from gusset.environments.uv import Uv\n"
        f"Uv(program={str(fake)!r}, environ={{'PATH': '/usr/bin:/bin'}}).run('x')"
    )
    with subprocess.Popen([sys.executable, "-c", code]) as process:
        while not (tmp_path / "pid").exists():
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    pid = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and Path(f"/proc/{pid}/exe").exists():
        time.sleep(0.01)
    assert not Path(f"/proc/{pid}/exe").exists()


SPEAKS = "#!/bin/sh\nprintf 'Resolved 1 package\\n' >&2; sleep 1.2; printf ' + alpha\\nerror: it failed\\n  cause: x\\n' >&2; exit 1\n"


def test_progress_appears_after_a_second_and_errors_not_at_all(tmp_path: Path) -> None:
    """Lines that came before are shown then; the error message is left to the error."""
    (tmp_path / "uv").write_text(SPEAKS)
    (tmp_path / "uv").chmod(0o755)
    shown = bytearray()
    mask = lambda text: text.replace("alpha", "****")  # noqa: E731
    progress = ProgressSink(write=shown.extend, mask=mask)
    result = Uv(program=str(tmp_path / "uv"), environ=dict(os.environ), progress=progress).run("x")

    assert shown == b"Resolved 1 package\n + ****\n"
    assert (result.status, result.message) == (1, "it failed\n  cause: x")


def test_a_terminal_gets_uvs_own_progress(tmp_path: Path) -> None:
    """uv writes to a terminal of its own, whose output is copied as it arrives."""
    (tmp_path / "uv").write_text(
        "#!/bin/sh\n[ -t 2 ] && printf 'bar\\rbar\\n\\033[2Kerror: bad\\n' >&2; exit 1\n"
    )
    (tmp_path / "uv").chmod(0o755)
    master, terminal = os.openpty()
    shown = bytearray()
    progress = ProgressSink(write=shown.extend, terminal=terminal)
    result = Uv(program=str(tmp_path / "uv"), environ=dict(os.environ), progress=progress).run("x")
    os.close(master)
    os.close(terminal)

    assert shown == b"bar\rbar\r"
    assert result.message == "bad"


HOSTILE = "a\x1b]0;title\x07b\x1b[6nc\x1b[2Jd\x9b6ne\x1bcf"
SHOWN = "\\x1b]0;title\\x07b\\x1b[6nc\\x1b[2Jd\\x9b6ne\\x1bcf"


def test_an_index_cannot_control_the_terminal(make: Making, index: Index, tmp_path: Path) -> None:
    """uv prints the reason for which a release was withdrawn with its 8-bit control characters; its own bars stay."""
    index.add(wheel(tmp_path, "withdrawn"))
    page = index.folder / "simple" / "withdrawn" / "index.html"
    page.write_text(page.read_text().replace("<a ", f'<a data-yanked="{HOSTILE}" '))
    master, terminal = os.openpty()
    progress = ProgressSink(write=make.shown.extend, terminal=terminal)
    uv = Uv(program=make.program, environ=make.environ, progress=progress)
    result = uv.run("venv", "--quiet", "--python", sys.executable, str(tmp_path / "venv"))
    assert result.status == 0
    result = uv.run(
        *("pip", "install", "--python", str(tmp_path / "venv/bin/python")),
        *("--index-url", index.url, "withdrawn==1.0"),
    )
    os.close(master)
    os.close(terminal)

    assert result.status == 0
    shown = make.shown.decode()
    assert "\\x9b6ne" in shown
    assert set(re.findall("\x1b(?!\\[[0-9;?]*[A-DGKJmhl])|[\x07\x9b]", shown)) == set()


def test_a_log_gets_no_escape_codes(tmp_path: Path) -> None:
    """What uv prints without a terminal comes from indexes and repositories as well."""
    (tmp_path / "uv").write_text(f"#!/bin/sh\nsleep 1.2\nprintf '%s\\n' '{HOSTILE}' >&2\n")
    (tmp_path / "uv").chmod(0o755)
    shown = bytearray()
    Uv(program=str(tmp_path / "uv"), environ=dict(os.environ), progress=ProgressSink(write=shown.extend)).run(
        "x"
    )

    assert shown.decode().rstrip("\n").isprintable()


def test_a_sequence_in_two_pieces_is_seen_whole() -> None:
    """Whatever way uv's output is cut."""
    text = f"\x1b[1mx\x1b[0m\r\x1b[2K⠋ {HOSTILE}\n".encode()
    for size in range(1, len(text)):
        output = TerminalOutput()
        pieces = [output.pass_on(text[at : at + size]) for at in range(0, len(text), size)]
        assert b"".join(pieces).decode() == f"\x1b[1mx\x1b[0m\r\x1b[2K⠋ a{SHOWN}\n"
