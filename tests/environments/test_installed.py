"""Whether what is installed satisfies requirements, in folders that only look installed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gusset.environments.installed import InstalledPackages, unsatisfied
from gusset.environments.plan import FileLocation
from gusset.environments.requirement_lines import Line, read_lines
from tests.environments.packages import install


def reasons(site: Path, *lines: str, folder: Path = Path("/m")) -> list[str]:
    """Why lines of requirements do not hold in a folder of packages."""
    written = [Line(text=line, location=FileLocation(file="config.yaml")) for line in lines]

    def read(path: Path) -> str:
        return path.read_text()

    return [
        each.reason
        for each in unsatisfied(read_lines(written, folder, read, {}), InstalledPackages([str(site)]))
    ]


def test_requirements_match_by_normalized_name_version_and_condition(tmp_path: Path) -> None:
    """Names are compared normalized, versions with local parts and pre-releases, conditions are respected."""
    install(tmp_path, "Foo_Bar", "2.1.0+cu121")
    install(tmp_path, "early", "2.0rc1")
    (tmp_path / "~oken-1.0.dist-info").mkdir()

    assert reasons(tmp_path, "foo.bar==2.1.0", "foo-bar>=2,<3", "early", "early>=1") == []
    assert reasons(tmp_path, "absent ; python_version < '3'", "absent; sys_platform == 'nowhere'") == []
    assert reasons(tmp_path, "foo-bar<2", "absent") == [
        "version 2.1.0+cu121 is installed",
        "it is not installed",
    ]


def test_packages_of_extras_count_recursively(tmp_path: Path) -> None:
    """An extra holds when its packages do, with the extras that these bring; rings end."""
    install(tmp_path, "top", requires=['mid[deep]>=1; extra == "all"', "always"])
    install(tmp_path, "mid", requires=['leaf>=2; extra == "deep"', 'top[all]; extra == "deep"'])
    assert reasons(tmp_path, "top[all]") == ["its extra deep needs leaf, which is not installed"]

    install(tmp_path, "leaf", "1.0")
    assert reasons(tmp_path, "top[all]") == ["its extra deep needs leaf>=2, but version 1.0 is installed"]
    assert reasons(tmp_path, "top", "top[unknown]") == []


GIT = {
    "url": "https://h.test/a/b.git",
    "vcs_info": {"vcs": "git", "commit_id": "c0ffee1234", "requested_revision": "v1"},
}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("b @ git+https://h.test/a/b.git@v1", None),
        ("b @ git+https://token@h.test/a/b@v1", None),
        ("git+https://h.test/a/b.git@v1", None),
        ("git+https://h.test/a/b.git@c0ffee1", None),
        ("git+https://h.test/a/b", None),
        ("b @ git+https://h.test/a/b.git@v2", "another revision of it is installed"),
        ("git+https://h.test/a/b.git@v2", None),
        ("b @ git+https://h.test/other@v1", "it is installed, but not from this address"),
        (
            "b @ git+https://h.test/a/b.git@v1#subdirectory=x",
            "it is installed, but from another folder of this address",
        ),
        ("b @ https://h.test/b.zip", "it is installed, but not from this address"),
    ],
)
def test_addresses_and_revisions_count(tmp_path: Path, line: str, reason: str | None) -> None:
    """A package from a repository satisfies only a requirement of that address and revision."""
    install(tmp_path, "b", direct_url=GIT)

    found = reasons(tmp_path, line)
    assert found == ([reason] if reason else []) or found == ["it is not installed"]
    assert (found == []) == (reason is None and "v2" not in line)


def test_a_package_from_an_index_is_not_one_from_an_address(tmp_path: Path) -> None:
    """The same name from an index does not satisfy a URL, but the other way round it does."""
    install(tmp_path, "b")
    assert reasons(tmp_path, "b @ https://h.test/b.zip") == ["it is installed, but not from this address"]

    install(tmp_path, "b", direct_url=GIT)
    assert reasons(tmp_path, "b==1.0") == []


def test_changed_code_of_a_local_path_counts(tmp_path: Path) -> None:
    """Code that changed after the installation makes the requirement not hold; editable code may change."""
    site, code = tmp_path / "site", tmp_path / "lib"
    code.mkdir()
    (code / "lib.py").write_text("x = 1")
    os.utime(code / "lib.py", (1, 1))
    info = install(site, "lib", direct_url={"url": code.as_uri(), "dir_info": {}})
    assert reasons(site, "./lib", folder=tmp_path) == []
    assert reasons(site, "-e ./lib", folder=tmp_path) == ["it is installed, but not as editable"]

    later = info.stat().st_mtime + 5
    os.utime(code / "lib.py", (later, later))
    assert reasons(site, "./lib", folder=tmp_path) == ["its code has changed since it was installed"]

    install(site, "lib", direct_url={"url": code.as_uri(), "dir_info": {"editable": True}})
    assert reasons(site, "-e ./lib", folder=tmp_path) == []


def test_constraints_limit_what_is_installed(tmp_path: Path) -> None:
    """A constraint that an installed package breaks does not hold; one of an absent package does."""
    install(tmp_path, "a", "2.0")
    limits = tmp_path / "limits.txt"
    limits.write_text("a<2\nabsent<1\n")

    assert reasons(tmp_path, f"-c {limits}") == ["version 2.0 is installed"]


def test_the_first_folder_of_the_import_path_wins(tmp_path: Path) -> None:
    """As for an import; folders that do not exist are passed over."""
    install(tmp_path / "a", "x", "1.0")
    install(tmp_path / "b", "x", "2.0")
    found = InstalledPackages([str(tmp_path / "none"), str(tmp_path / "a"), str(tmp_path / "b")]).find("x")

    assert found is not None
    assert found.version == "1.0"
