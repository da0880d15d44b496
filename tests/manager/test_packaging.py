"""The systemd unit and the Containerfile, checked as text: not every machine can run them."""

from __future__ import annotations

import re
import shlex
from configparser import ConfigParser
from pathlib import Path
from typing import Any

import yaml

from tests.conftest import Cli

FOLDER = Path(__file__).parents[2] / "packaging"


def test_the_unit_runs_without_privileges(gusset: Cli) -> None:
    """Not as root, without new privileges or core files; its command line is valid."""
    unit = ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(FOLDER / "gusset-manager.service")
    service = unit["Service"]
    assert service["User"] == "gusset" and service["NoNewPrivileges"] == "yes" and service["LimitCORE"] == "0"
    program, *words = shlex.split(service["ExecStart"])
    assert program.endswith("/gusset") and "--insecure-http" not in words
    gusset(*words, "--help")


def test_the_image_does_not_run_as_root_and_pins_its_dependencies(gusset: Cli) -> None:
    lines = (FOLDER / "Containerfile").read_text().splitlines()
    [user] = [line.split()[1] for line in lines if line.startswith("USER ")]
    assert int(user.partition(":")[0]) > 0
    assert any("--require-hashes" in line for line in lines)
    assert not any(re.search(r":latest\b|ADD http", line) for line in lines)
    copied = [
        word
        for line in lines
        if line.startswith("COPY ") and "--from" not in line
        for word in line.split()[1:-1]
    ]
    assert all((FOLDER.parent / name).exists() for name in copied)
    words = [word.strip('",[]') for line in lines if line.startswith("CMD") for word in line.split()[1:]]
    gusset(*words)


def test_compose_gives_no_password_in_an_environment(gusset: Cli) -> None:
    """Managers are confined and probed, their command line is valid, and what is mounted exists."""
    stack: dict[str, Any] = yaml.safe_load((FOLDER.parent / "compose.yaml").read_text())
    services = stack["services"]
    for name, service in services.items():
        for variable, value in service.get("environment", {}).items():
            assert "password" not in value.lower() or variable.endswith("_FILE"), (name, variable)
        for volume in service.get("volumes", []):
            if volume.startswith("./"):
                assert (FOLDER.parent / volume.partition(":")[0]).exists(), volume
        if name != "owner":
            assert service["restart"] == "unless-stopped" and service["healthcheck"]["test"][0] == "CMD"
    for name in ("manager-1", "manager-2"):
        assert services[name]["read_only"] and services[name]["cap_drop"] == ["ALL"]
        assert services["proxy"]["networks"]["front"]["ipv4_address"] in services[name]["command"]
        gusset(*services[name]["command"], "--help")
    secrets = {line for service in services.values() for line in service.get("secrets", [])}
    assert secrets == stack["secrets"].keys()
