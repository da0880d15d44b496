"""Lines of requirements, as pip and Truss write them."""

from __future__ import annotations

import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.requirements import Requirement as Pep508

from gusset.environments.plan import FileLocation, InstallOptions
from gusset.environments.requirement_lines import (
    Line,
    Requirements,
    logical_lines,
    read_lines,
    without_login,
)

FOLDER = Path("/models/m")


def read(*lines: str, files: dict[str, str] | None = None, **variables: str) -> Requirements:
    """Read entries of `requirements` in a folder with these files."""

    def read_file(path: Path) -> str:
        try:
            return (files or {})[str(path.relative_to(FOLDER))]
        except KeyError:
            raise FileNotFoundError(2, "No such file or directory") from None

    written = [
        Line(
            text=text,
            location=FileLocation(file="config.yaml", line=number, key=f"requirements[{number - 1}]"),
        )
        for number, text in enumerate(lines, 1)
    ]
    return read_lines(written, FOLDER, read_file, variables, shown=lambda path: str(path.relative_to(FOLDER)))


@pytest.mark.parametrize(
    ("line", "text", "name"),
    [
        ("torch==2.1", "torch==2.1", "torch"),
        ("Foo.Bar[x,y] >= 1 ; python_version < '4'", "Foo.Bar[x,y] >= 1 ; python_version < '4'", "foo-bar"),
        ("mylib (>=1.0)", "mylib (>=1.0)", "mylib"),
        ("'quoted==1'", "quoted==1", "quoted"),
        ("numpy  # a comment", "numpy", "numpy"),
        ("x==${VERSION}", "x==3", "x"),
        ("git+https://h.test/a/b.git@v1", "git+https://h.test/a/b.git@v1", None),
        ("git+https://h.test/a/b#egg=Bee[z]", "git+https://h.test/a/b#egg=Bee[z]", "bee"),
        ("-e git+https://h.test/a/b#egg=bee", "git+https://h.test/a/b#egg=bee", "bee"),
        ("bee @ git+ssh://git@h.test/a/b", "bee @ git+ssh://git@h.test/a/b", "bee"),
        ("https://h.test/x_y-1.0-py3-none-any.whl", "https://h.test/x_y-1.0-py3-none-any.whl", "x-y"),
        ("https://${TOKEN}@h.test/x.zip", "https://${TOKEN}@h.test/x.zip", None),
        ("./lib[extra]", "file:///models/m/lib[extra]", None),
        ("packages/lib", "file:///models/m/packages/lib", None),
        ("../w-1.0-py3-none-any.whl", "file:///models/w-1.0-py3-none-any.whl", "w"),
        ("file:./lib", "file:///models/m/lib", None),
        ("lib @ file:./lib", "lib @ file:///models/m/lib", "lib"),
        ("-e .", "-e /models/m", None),
        ("--editable=./lib[a]", "-e /models/m/lib[a]", None),
        ("x==1 --hash=sha256:ab --hash=sha512:cd", "x==1 --hash=sha256:ab --hash=sha512:cd", "x"),
    ],
)
def test_a_line_is_read_as_pip_reads_it(line: str, text: str, name: str | None) -> None:
    """Names, URLs, repositories and paths are told apart; paths become absolute, logins stay variables."""
    found = read(line, VERSION="3", TOKEN="secret")

    assert found.problems == ()
    [requirement] = found.requirements
    assert (requirement.text, requirement.name) == (text, name)
    assert requirement.location == FileLocation(file="config.yaml", line=1, key="requirements[0]")


@pytest.mark.parametrize("line", ["https://${TOKEN}@h.test/x.zip", "./lib-${TOKEN}", "-r ${TOKEN}.txt"])
@pytest.mark.parametrize("variables", [{}, {"TOKEN": ""}], ids=["unset", "empty"])
def test_a_variable_that_is_not_set_is_a_warning(line: str, variables: dict[str, str]) -> None:
    """The text stays as it is, as for pip, which then fails for a reason that names no variable."""
    warnings = [each for each in read(line, files={"${TOKEN}.txt": ""}, **variables).problems if each.warning]
    assert [(each.message, each.line) for each in warnings] == [
        ("the variable TOKEN is not set: ${TOKEN} stays as it is written", 1)
    ]
    assert read(line, files={"set.txt": ""}, TOKEN="set").problems == ()


def test_options_say_where_packages_are_found() -> None:
    """Each spelling of an option counts; paths of --find-links begin at the file's folder."""
    found = read(
        "--index-url https://a.test/simple",
        "--extra-index-url=https://b.test/simple",
        "-f ./wheels",
        "-fhttps://c.test/links",
        "--no-binary :all:",
        "--only-binary=x,y",
        "--pre",
        "--trusted-host h.test --pre",
        "--prefer-binary",
    )

    assert found.problems == () == found.requirements
    assert found.options == InstallOptions(
        index_url="https://a.test/simple",
        extra_index_urls=("https://b.test/simple",),
        find_links=("/models/m/wheels", "https://c.test/links"),
        no_binary=(":all:",),
        only_binary=("x", "y"),
        prereleases=True,
        trusted_hosts=("h.test",),
    )


def test_files_include_others_and_keep_their_lines() -> None:
    """Paths of -r and -c begin at the including file; what a constraints file includes are constraints."""
    files = {
        "sub/a.txt": "# head\n\none \\\n  ==1\n-r b.txt\n-c limits.txt\n",
        "sub/b.txt": "two\n",
        "sub/limits.txt": "three<3\n-r more.txt\n",
        "sub/more.txt": "four<4",
    }
    found = read("-r sub/a.txt", files=files)

    assert found.problems == ()
    assert [(r.name, r.location.file, r.location.line) for r in found.requirements] == [
        ("one", "sub/a.txt", 3),
        ("two", "sub/b.txt", 1),
    ]
    assert [(r.name, r.location.file) for r in found.constraints] == [
        ("three", "sub/limits.txt"),
        ("four", "sub/more.txt"),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("foo bar", "not a requirement"),
        ("a=1", "not a requirement"),
        ("-r", "no file is named"),
        ("-r missing.txt", "cannot be read: no such file"),
        ("-r loop.txt", "loop.txt includes itself"),
        ("-r https://h.test/r.txt", "at a URL are not read"),
        ("--index-url", "--index-url has no value"),
        ("--target /x", "the option --target cannot be used here"),
        ("torch --index-url https://h.test", "--index-url cannot be used after a requirement"),
        ("./x ; not a condition", "not a condition"),
    ],
)
def test_a_malformed_line_is_a_problem_with_its_location(line: str, message: str) -> None:
    """What cannot be installed is reported with line and key; the other lines are read."""
    found = read("good", line, files={"loop.txt": "-r loop.txt"})

    [problem] = found.problems
    assert message in problem.message
    assert not problem.warning
    assert problem.file in ("config.yaml", "loop.txt")
    assert [r.name for r in found.requirements] == ["good"]


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("torch --extra-index-url https://h.test", "write it on a separate line"),
        ("torch --no-build-isolation", "write it on a separate line"),
        ("torch --config-settings=a=b", "remove it; docs/environments.md lists the options"),
    ],
)
def test_the_hint_for_an_option_behind_a_requirement_leads_to_a_line_that_is_read(
    line: str, hint: str
) -> None:
    """Not every option may stand on a line of its own."""
    [problem] = read(line).problems
    assert problem.hint == hint


def test_no_login_is_in_a_message() -> None:
    """A malformed line with a login in it is not repeated."""
    found = read("https://user:hunter22@h.test/x ; nonsense", "--nope https://user:hunter22@h.test")

    assert len(found.problems) == 2
    assert "hunter22" not in repr(found.problems)
    assert without_login("a @ https://user:hunter22@h.test/x") == "a @ https://h.test/x"


NAMES = st.from_regex(r"[a-z0-9]([a-z0-9._-]{0,8}[a-z0-9])?", fullmatch=True)
VERSIONS = st.from_regex(r"[0-9]{1,2}(\.[0-9]{1,2}){0,2}", fullmatch=True)
SPECIFIERS = st.builds("{}{}".format, st.sampled_from(["==", ">=", "<", "~=1.", "!="]), VERSIONS)
EXTRAS = st.lists(NAMES, max_size=2).map(lambda names: f"[{','.join(names)}]" if names else "")


@given(NAMES, EXTRAS, SPECIFIERS, st.sampled_from(["", " ; python_version >= '3'", " # comment"]))
def test_every_standard_requirement_is_read(name: str, extras: str, specifier: str, tail: str) -> None:
    """What the standard allows is read with the same name, extras and versions."""
    text = f"{name}{extras}{specifier}{tail}"
    [found] = read(text).requirements
    expected = Pep508(text.split(" #")[0])

    assert (str(found.specifier), str(found.marker)) == (str(expected.specifier), str(expected.marker))
    assert len(found.extras) <= len(expected.extras)
    assert Pep508(found.text) == expected


@given(st.text(alphabet=string.printable, max_size=60))
def test_any_text_gives_requirements_or_problems(text: str) -> None:
    """No line crashes the reader, and every line with content has an effect or is reported."""
    found = read(text)
    lines = list(logical_lines(text, "config.yaml"))

    effects = len(found.requirements) + len(found.constraints) + len(found.problems)
    if found.options == InstallOptions() and not any(each.text.startswith("-") for each in lines):
        assert effects >= len(lines)
