"""The folder of an agent: its layout, its modes, changes as a whole, and what it refuses."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gusset.agent.folder import AgentFolder
from gusset.errors import Conflict, HostError, InvalidName, UsageError
from gusset.secrets.value import SecretValue
from tests.agent.conftest import contents
from tests.conftest import as_ordinary_process


def values(**texts: bytes) -> dict[str, SecretValue]:
    return {name: SecretValue(text) for name, text in texts.items()}


@pytest.fixture
def folder(memory: Path) -> Iterator[AgentFolder]:
    opened = AgentFolder.open(memory)
    yield opened
    opened.close()


def test_the_layout_is_that_of_kubernetes_volumes(folder: AgentFolder, memory: Path) -> None:
    folder.replace(values(token=b"one", key=b"two"))

    assert (memory / "token").readlink() == Path("..data/token")
    generation = (memory / "..data").readlink()
    assert sorted(path.name for path in memory.iterdir()) == sorted(
        ["..data", generation.name, "key", "token"]
    )
    assert contents(memory) == {"token": b"one", "key": b"two"}


def test_only_the_owner_can_read_and_nobody_can_write(folder: AgentFolder, memory: Path) -> None:
    before = os.umask(0)
    try:
        folder.replace(values(token=b"one"), values(token=b"zero"))
    finally:
        os.umask(before)

    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (memory / "..data").rglob("*")}
    assert modes == {"token": 0o400, "..previous": 0o500}
    assert stat.S_IMODE((memory / "..data").stat().st_mode) == 0o500
    assert stat.S_IMODE((memory / "..previous" / "token").stat().st_mode) == 0o400


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files to another account")
def test_as_root_the_files_belong_to_the_folders_owner(memory: Path) -> None:
    path = memory / "app"  # in a folder to which only root may write
    path.mkdir()
    os.chown(path, 1234, 5678)
    folder = AgentFolder.open(path)
    folder.replace(values(token=b"one"), values(token=b"zero"))
    folder.close()

    owners = {(each.lstat().st_uid, each.lstat().st_gid) for each in path.rglob("*")}
    assert owners == {(1234, 5678)}


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give folders to another account")
def test_root_gives_no_values_to_who_was_first_in_a_shared_folder(memory: Path) -> None:
    os.chown(memory, 1234, 5678)  # it is in /dev/shm
    (memory / "inner").mkdir()
    os.chown(memory / "inner", 1234, 5678)
    link = memory.with_name(memory.name + "-link")
    link.symlink_to(memory)
    try:
        for path in (memory, memory / "inner", link / "." / "inner"):
            with pytest.raises(HostError, match="belongs to another account"):
                AgentFolder.open(path)
    finally:
        link.unlink()
    assert [path.name for path in memory.iterdir()] == ["inner"]


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give folders to another account")
def test_a_folder_of_another_account_is_refused(memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its owner could put other values in place of the agent's."""
    path = memory / "theirs"
    path.mkdir()
    path.chmod(0o777)
    os.chown(path, 1234, 5678)
    monkeypatch.setattr(os, "geteuid", lambda: 4321)
    with pytest.raises(HostError, match="belongs to another account"):
        AgentFolder.open(path)
    os.chown(path, 0, 0)  # as Kubernetes makes an emptyDir
    AgentFolder.open(path).close()


def test_values_are_exact(folder: AgentFolder, memory: Path) -> None:
    exact = {"empty": b"", "lines": b"a\r\nb\n\n", "binary": os.urandom(65_536)}
    folder.replace(values(**exact))

    assert contents(memory) == exact


def test_a_change_replaces_all_values_and_removes_those_that_are_gone(
    folder: AgentFolder, memory: Path
) -> None:
    folder.replace(values(token=b"one", key=b"two"))
    folder.replace(values(token=b"three", other=b"four"))

    assert contents(memory) == {"token": b"three", "other": b"four"}
    assert len(list(memory.iterdir())) == 4  # no older generation


def test_previous_values_change_together_with_the_current_ones(folder: AgentFolder, memory: Path) -> None:
    folder.replace(values(token=b"one"))
    assert not (memory / "..previous").exists()

    folder.replace(values(token=b"two"), values(token=b"one"))
    assert (memory / "..previous" / "token").read_bytes() == b"one"
    assert (memory / "..previous").readlink() == Path("..data/..previous")

    folder.replace(values(token=b"two"))
    assert not (memory / "..previous").is_symlink()


def test_the_same_values_again_change_nothing(folder: AgentFolder, memory: Path) -> None:
    folder.replace(values(token=b"one"), values(token=b"zero"))
    before = folder.generation
    folder.replace(values(token=b"one"), values(token=b"zero"))

    assert folder.generation == before


@pytest.mark.parametrize("name", ["../token", "a/b", "..data", "..previous", ".", "", "token\n", "x" * 254])
def test_a_name_that_is_no_file_name_is_refused_before_anything_is_written(
    folder: AgentFolder, memory: Path, name: str
) -> None:
    with pytest.raises(InvalidName):
        folder.replace({"good": SecretValue(b"one"), name: SecretValue(b"two")})

    assert list(memory.iterdir()) == []


def test_the_longest_name_is_a_file(folder: AgentFolder, memory: Path) -> None:
    folder.replace({"x" * 253: SecretValue(b"one")})

    assert (memory / ("x" * 253)).read_bytes() == b"one"


def test_a_folder_that_is_not_in_memory_is_refused(tmp_path: Path) -> None:
    if subprocess.run(["stat", "-f", "-c", "%T", tmp_path], capture_output=True).stdout == b"tmpfs\n":
        pytest.skip("the folder of temporary files is in memory")
    (tmp_path / "secrets").mkdir()
    for path in (tmp_path / "secrets", tmp_path / "absent"):
        with pytest.raises(HostError, match="is not in memory") as error:
            AgentFolder.open(path)
        assert "tmpfs" in str(error.value.hint)
    assert not (tmp_path / "absent").exists()


def test_a_link_in_memory_to_a_folder_on_disk_is_refused(tmp_path: Path, memory: Path) -> None:
    if os.statvfs(tmp_path).f_fsid == os.statvfs(memory).f_fsid:
        pytest.skip("the folder of temporary files is in memory")
    (memory / "link").symlink_to(tmp_path)

    with pytest.raises(HostError, match="is not in memory"):
        AgentFolder.open(memory / "link")


def test_a_missing_folder_in_memory_is_created_for_the_owner_alone(memory: Path) -> None:
    AgentFolder.open(memory / "new").close()

    assert stat.S_IMODE((memory / "new").stat().st_mode) == 0o700


def test_a_file_in_place_of_the_folder_is_refused(memory: Path) -> None:
    (memory / "file").write_bytes(b"")

    with pytest.raises(UsageError, match="is not a folder"):
        AgentFolder.open(memory / "file")


@pytest.mark.parametrize("name", ["notes.txt", "..data", "..2026_11_28_19_05_33.5be1c0a79d3f4c21"])
def test_a_folder_with_files_of_others_is_refused_and_stays_as_it_is(memory: Path, name: str) -> None:
    (memory / name).write_bytes(b"somebody's")

    with pytest.raises(UsageError, match="no agent created"):
        AgentFolder.open(memory)
    assert (memory / name).read_bytes() == b"somebody's"


def test_a_file_that_somebody_puts_there_later_is_not_taken_for_a_value(
    folder: AgentFolder, memory: Path
) -> None:
    folder.replace(values(token=b"one"))
    (memory / "key").write_bytes(b"somebody's")

    with pytest.raises(HostError, match="file exists"):
        folder.replace(values(token=b"two", key=b"three"))
    assert (memory / "token").read_bytes() == b"one"


def test_two_agents_cannot_use_one_folder(folder: AgentFolder, memory: Path) -> None:
    with pytest.raises(Conflict, match="another agent"):
        AgentFolder.open(memory)


def test_a_folder_is_free_again_when_its_agent_has_closed_it(memory: Path) -> None:
    AgentFolder.open(memory).close()
    AgentFolder.open(memory).close()


def test_an_emptied_folder_has_nothing_left(folder: AgentFolder, memory: Path) -> None:
    folder.replace(values(token=b"one"), values(token=b"zero"))
    folder.empty()

    assert list(memory.iterdir()) == []


def test_without_room_the_old_values_stay(tmp_path: Path) -> None:
    """In a tmpfs of its own that is full."""
    mounted = tmp_path / "small"
    mounted.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "none", mounted], capture_output=True
    ).returncode:
        pytest.skip("this account cannot mount a tmpfs")
    try:
        folder = AgentFolder.open(mounted)
        folder.replace(values(token=b"one"))
        with pytest.raises(HostError, match="no space left"):
            folder.replace(values(token=b"two", large=os.urandom(65_536)))
        assert contents(mounted) == {"token": b"one"}
        assert len(list(mounted.iterdir())) == 3
        folder.close()
    finally:
        subprocess.run(["umount", mounted], check=True)


_ENDLESS = """
import sys
from pathlib import Path
from gusset.agent.folder import AgentFolder
from gusset.secrets.value import SecretValue
folder = AgentFolder.open(Path(sys.argv[1]), linger=float(sys.argv[2]))
number = 0
while True:
    number += 1
    text = str(number).encode()
    names = ["a", "b", "c", "odd" if number % 2 else "even"]
    folder.replace({name: SecretValue(text) for name in names}, {"a": SecretValue(text)})
    if number == 1:
        print("started", flush=True)  # there is a generation
"""


@pytest.mark.slow
def test_an_agent_that_is_killed_at_any_moment_leaves_one_whole_generation(memory: Path) -> None:
    """The next one removes the rest, whatever it was."""
    leftovers = 0
    for round in range(40):
        with subprocess.Popen(
            [sys.executable, "-c", _ENDLESS, memory, "0"], stdout=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"started\n"
            time.sleep(0.005 + round * 0.0007)  # the kill comes at many moments
            process.send_signal(signal.SIGKILL)
        found = {path.name: path.read_bytes() for path in (memory / "..data").iterdir() if path.is_file()}
        assert len(found) == 4 and len(set(found.values())) == 1
        assert found == {name: (memory / name).read_bytes() for name in found}
        assert (memory / "..previous" / "a").read_bytes() == found["a"]
        leftovers += len(list(memory.iterdir())) > 7

        AgentFolder.open(memory).close()

        assert contents(memory) == found
        assert len(list(memory.iterdir())) == 7  # four links, `..data`, `..previous` and the generation
    assert leftovers, "no kill came in the middle of a change"


_ALL = """
import sys
from pathlib import Path
from gusset.agent.folder import AgentFolder
from gusset.secrets.value import SecretValue
folder = AgentFolder.open(Path(sys.argv[1]), linger=0)
for text in (b"one", b"two"):
    folder.replace({"token": SecretValue(text)}, {"token": SecretValue(text)})
    print(sorted(path.name[:2] for path in Path(sys.argv[1]).iterdir()))
folder.close()
folder = AgentFolder.open(Path(sys.argv[1]), linger=0)
folder.empty()
print(list(Path(sys.argv[1]).iterdir()))
"""


def test_without_privileges_all_of_it_works(memory: Path) -> None:
    """Folders of mode 0500 stop root from nothing, but its owner from removing files."""
    command = [*as_ordinary_process(), sys.executable, "-c", _ALL, memory]
    done = subprocess.run(command, capture_output=True, text=True)
    entries = str(["..", "..", "..", "to"])
    assert done.stdout.splitlines() == [entries, entries, "[]"], done.stderr


def test_a_folder_that_this_account_may_not_write_to_is_refused(memory: Path) -> None:
    memory.chmod(0o500)
    command = [*as_ordinary_process(), sys.executable, "-c", _ALL, memory]
    done = subprocess.run(command, capture_output=True, text=True)
    assert "may not write to" in done.stderr


_READER = """
import os, sys
folder, seen, mixed = sys.argv[1], 0, 0
while seen < 3000:
    generation = os.readlink(folder + "/..data")
    try:
        found = {open(f"{folder}/{generation}/{name}").read() for name in "abc"}
    except FileNotFoundError:  # it was replaced meanwhile: read the next one
        continue
    seen += 1
    mixed += len(found) != 1
print(mixed)
"""


def test_a_reader_of_one_generation_never_sees_values_of_two(memory: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", _ENDLESS, memory, "0"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"started\n"
        read = subprocess.run([sys.executable, "-c", _READER, memory], capture_output=True, timeout=120)
        process.kill()
    assert read.stdout == b"0\n", read.stderr.decode()


@pytest.mark.slow
def test_a_value_is_never_absent_while_it_is_replaced(folder: AgentFolder, memory: Path) -> None:
    folder.replace(values(token=b"0"))
    code = f"while True: open({str(memory / 'token')!r}).read()"
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE) as process:
        for number in range(50):
            folder.replace(values(token=str(number).encode()))
        assert process.poll() is None
        process.kill()
