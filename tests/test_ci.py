"""What continuous integration runs: targets that exist, on the PostgreSQL that they name, with nothing skipped silently."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.conftest import pytest_runtest_setup

ROOT = Path(__file__).parents[1]
WORKFLOW = ROOT / ".github" / "workflows" / "ci.yml"


def jobs() -> dict[str, str]:
    """The commands of each job of the workflow; for one with a matrix of targets, with those in their place."""
    found = {}
    for name, job in yaml.safe_load(WORKFLOW.read_text())["jobs"].items():
        commands = "\n".join(step.get("run", "") for step in job["steps"])
        targets = " ".join(job.get("strategy", {}).get("matrix", {}).get("targets", []))
        found[name] = commands.replace("${{ matrix.targets }}", targets)
    return found


def targets(commands: str) -> set[str]:
    """The targets of the Makefile in commands."""
    lines = re.findall(r"^(?:make|scripts/in-debian)(?: -j\d)?((?: [a-z-]+)+)", commands, re.MULTILINE)
    return {target for line in lines for target in line.split()}


def test_continuous_integration_runs_targets_of_the_makefile() -> None:
    """Each that it names is there, and together they are all of the tests."""
    known = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    used = targets("\n".join(jobs().values()))
    assert used <= known and targets((ROOT / ".ci" / "run").read_text()) <= known
    tests = {"check", "unit", "system", "postgres-all", "engines", "browser", "ray", "examples-test"}
    assert tests | {"test-compiled", "dist"} <= used


def test_jobs_without_root_run_no_test_that_needs_it() -> None:
    """Those run in a container, where they are root and Debian's packages are installed."""
    makefile = (ROOT / "Makefile").read_text()
    [unit] = re.findall(r"^UNIT = not \((.*)\)$", makefile, re.MULTILINE)
    assert "system" in unit.split(" or ")
    for name, commands in jobs().items():
        if "in-debian" not in commands:
            assert not targets(commands) & {
                "test",
                "system",
                "postgres",
                "postgres-all",
                "engines",
                "browser",
            }, name


@pytest.mark.slow
@pytest.mark.parametrize(
    "file", ["manager/test_partition.py", "vault/test_database_tls.py", "manager/test_nginx.py"]
)
def test_tests_of_networks_and_of_system_packages_are_marked(file: str) -> None:
    """`make unit` selects none of them."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--collect-only",
        "-m",
        "not system",
    ]
    done = subprocess.run([*command, f"tests/{file}"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == pytest.ExitCode.NO_TESTS_COLLECTED, done.stdout


@pytest.mark.parametrize("target", ["postgres", "postgres-all"])
@pytest.mark.parametrize("named", ["", "/nowhere"])
def test_the_systems_postgres_is_never_replaced_by_that_of_the_wheel(target: str, named: str) -> None:
    """Where it is missing, the target ends with an error before it runs a test."""
    made = ["--old-file", ".venv/.made", "SYSTEM_POSTGRES=", f"GUSSET_TEST_POSTGRES={named}"]
    done = subprocess.run(
        ["make", target, *made, "PYTEST=echo tests run:"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode != 0 and "there is no PostgreSQL in /" in done.stderr
    assert "tests run" not in done.stdout


@pytest.mark.parametrize(("ci", "outcome"), [("1", pytest.fail.Exception), ("", pytest.skip.Exception)])
def test_a_test_that_lacks_a_program_fails_in_ci(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, ci: str, outcome: type[BaseException]
) -> None:
    """Elsewhere it is skipped; both say which, and how to install it."""
    monkeypatch.setenv("CI", ci)
    request.node.add_marker(pytest.mark.system("sh", "no-such-program"))
    with pytest.raises(outcome, match="not installed: no-such-program; `make system-deps`"):
        pytest_runtest_setup(request.node)
