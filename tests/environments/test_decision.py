"""Whether a folder runs on this Python, and what makes its environment another one."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from gusset.environments.decision import Decision, Machine, decide
from gusset.environments.installed import InstalledPackages
from gusset.environments.requested import Files, request_of
from gusset.package.config import load_package
from tests.environments.packages import install

MODEL = "class Model:\n    def predict(self, inputs):\n        return inputs\n"


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    site = tmp_path / "site"
    install(site, "alpha", "1.0")
    return Machine(
        version=(3, 12),
        executable="/usr/bin/python3.12",
        build="3.12.1",
        platform="linux-x86_64",
        installed=InstalledPackages([str(site)]),
    )


def decided(
    folder: Path, machine: Machine, config: str = "", code: str = MODEL, lock: str = "", **options: object
) -> Decision:
    """Decide for a folder with this config.yaml and code; `lock` is what uv exports from its uv.lock."""
    (folder / "model").mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(config)
    (folder / "model" / "model.py").write_text(code)
    files = Files(read=lambda path: path.read_text(), export=lambda path: lock, variables={})
    request = request_of(load_package(folder), files)
    return decide(request, machine, name="m", folder=folder, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ("", None),
        ("requirements: [alpha==1.0]", None),
        ("python_version: py312\nrequirements: [alpha]", None),
        ("requirements: ['beta; python_version < \"3\"']", None),
        ("python_version: py311", "the model asks for Python 3.11, and gusset runs on 3.12"),
        ("requirements:\n- alpha\n- beta==2", "beta==2: it is not installed"),
        ("requirements: [alpha>1]", "alpha>1: version 1.0 is installed"),
    ],
)
def test_a_folder_runs_on_this_python_if_it_can(
    tmp_path: Path, machine: Machine, config: str, reason: str | None
) -> None:
    """An absent python_version asks for nothing; each reason has its line."""
    decision = decided(tmp_path / "m", machine, config)

    assert (decision.plan is None) == (reason is None)
    if decision.plan is not None:
        assert [each.message for each in decision.plan.reasons] == [reason]
        assert decision.plan.reasons[0].line == len(config.splitlines())


def test_a_module_of_trusss_server_is_a_reason(tmp_path: Path, machine: Machine) -> None:
    """`import requests` without naming it works in an environment of the folder's own, which has it."""
    code = "import requests\nimport yaml\n" + MODEL
    install(tmp_path / "site", "PyYAML", "6.0")
    plan = decided(tmp_path / "m", machine, code=code).plan

    assert plan is not None
    [reason] = plan.reasons
    assert (reason.message, reason.line) == ("the code imports requests, which is not installed", 1)
    assert "gusset[truss]" in str(reason.hint)
    assert plan.requirements == ()
    guarded = "try:\n    import requests\nexcept ImportError:\n    pass\n" + MODEL
    assert decided(tmp_path / "m", machine, code=guarded).plan is None


def test_the_mode_decides_first(tmp_path: Path, machine: Machine) -> None:
    """`own` always makes an environment; `current` never does, and warns of each reason."""
    assert decided(tmp_path / "m", machine, mode="own").plan is not None
    decision = decided(tmp_path / "m", machine, "requirements: [beta]", mode="current")
    assert decision.plan is None
    assert [(each.warning, each.message) for each in decision.problems] == [
        (True, "beta: it is not installed")
    ]


def test_a_python_older_than_gussets_oldest_becomes_the_nearest(tmp_path: Path, machine: Machine) -> None:
    """With a warning; `exact` makes it an error."""
    decision = decided(tmp_path / "m", machine, "python_version: py310")
    assert decision.plan is not None
    assert (decision.plan.python.version, decision.plan.python.written) == ((3, 11), (3, 10))
    assert [p.message for p in decision.problems] == [
        "gusset does not run on Python 3.10: the nearest is 3.11"
    ]

    exact = decided(tmp_path / "m", machine, "python_version: py310", exact=True)
    assert [p.warning for p in exact.problems] == [False]
    assert exact.plan is None
    older = replace(machine, version=(3, 11))
    assert decided(tmp_path / "m", older, "python_version: py310").plan is None


def test_every_input_changes_the_key(tmp_path: Path, machine: Machine) -> None:
    """Another line, included file, local code, Python or index means another environment."""
    folder = tmp_path / "m"
    (folder / "lib").mkdir(parents=True)
    (folder / "lib" / "lib.py").write_text("x = 1")
    (folder / "r.txt").write_text("beta\n-r s.txt\n./lib")
    (folder / "s.txt").write_text("gamma")
    config = "requirements_file: r.txt"

    def key(
        change: object = None, machine: Machine = machine, config: str = config, **options: object
    ) -> str:
        plan = decided(folder, machine, config, **options).plan
        assert plan is not None
        return plan.key

    keys = [key()]
    assert key() == keys[0]
    keys.append(key((folder / "lib" / "lib.py").write_text("x = 2")))
    keys.append(key((folder / "s.txt").write_text("gamma==2")))
    keys.append(key((folder / "r.txt").write_text("beta\n-r s.txt\n-c s.txt\n./lib")))
    keys.append(key(machine=replace(machine, build="3.12.2")))
    keys.append(key(machine=replace(machine, settings={"UV_DEFAULT_INDEX": "https://m.test"})))
    keys.append(key(machine=replace(machine, constraints=["numpy<2"])))
    keys.append(key(config=config + "\npython_version: py313"))
    keys.append(key(config=config + "\npython_version: py313", exact=True))
    assert len(set(keys)) == len(keys)

    settings = {"UV_DEFAULT_INDEX": "https://user:hunter22@m.test"}
    assert key(machine=replace(machine, settings=settings)) == keys[5]
    os.mkdir(folder / "lib" / "__pycache__")
    (folder / "lib" / "__pycache__" / "lib.pyc").write_text("x")
    assert key(machine=replace(machine, settings=settings)) == keys[5]


def test_pyproject_and_uv_lock_give_requirements_and_other_files_are_refused(
    tmp_path: Path, machine: Machine
) -> None:
    """pyproject.toml gives its dependencies, uv.lock what uv exports; other tools' files are refused."""
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "pyproject.toml").write_text('[project]\ndependencies = ["beta>=1", "not one", "./lib"]\n')
    (folder / "lib").mkdir()
    (folder / "uv.lock").write_text("version = 1")
    decision = decided(folder, machine, "requirements_file: pyproject.toml")
    assert decision.plan is not None
    assert decision.plan.requirements == ("beta>=1", (folder / "lib").as_uri())
    assert [(p.line, p.warning) for p in decision.problems] == [(1, True)]

    locked = decided(folder, machine, "requirements_file: uv.lock", lock="beta==1 \\\n    --hash=sha256:ab\n")
    assert locked.plan is not None
    assert locked.plan.requirements == ("beta==1     --hash=sha256:ab".replace("     ", " "),)

    for name, message in (("poetry.lock", "belongs to another tool"), ("none.txt", "cannot be read")):
        [problem] = decided(folder, machine, f"requirements_file: {name}").problems
        assert message in problem.message
        assert (problem.line, problem.warning) == (1, False)


def test_a_missing_local_path_is_an_error(tmp_path: Path, machine: Machine) -> None:
    """The error has the line, before anything is made."""
    [problem] = decided(tmp_path / "m", machine, "requirements: [./nowhere]").problems
    assert problem.message.startswith("there is no /")
    assert not problem.warning


def test_logins_come_from_secrets_and_are_part_of_the_plan_by_name(tmp_path: Path, machine: Machine) -> None:
    """Secrets for .netrc, pip.conf and uv.toml are named in the plan; those for other paths are not."""
    config = """requirements: [beta]
build:
  secret_to_path_mapping:
    index_login: /home/app/.netrc
    pip_settings: /etc/pip.conf
    other: /home/app/token
"""
    plan = decided(tmp_path / "m", machine, config).plan
    assert plan is not None
    assert [(each.secret, each.kind, each.location.line) for each in plan.login_files] == [
        ("index_login", ".netrc", 4),
        ("pip_settings", "pip.conf", 5),
    ]


def test_this_machine_is_described_by_its_python() -> None:
    """The version, and the installation that virtual environments are made from."""
    here = Machine.here({})
    assert here.version == sys.version_info[:2]
    assert Path(here.executable).exists()
    assert here.installed.find("packaging") is not None
