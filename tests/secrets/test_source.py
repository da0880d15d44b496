"""Sources of secrets: folders, the environment and chains."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import queue
import subprocess
import sys
import threading

import pytest

from gusset.errors import Denied, InvalidName, InvalidValue, Unreachable
from gusset.secrets.sources.chain import ChainSource
from gusset.secrets.sources.environment import EnvironmentSource
from gusset.secrets.sources.folder import FolderSource
from gusset.secrets.sources.source import Delivered
from gusset.secrets.value import MAX_BYTES, SecretValue
from tests.conftest import as_ordinary_process
from tests.serving.conftest import eventually

EXACT = [
    b"plain",
    b"",
    b"trailing newline\n",
    b"\x00\xff\xfe binary \r\n",
    "h\u00e9".encode(),
    b"x" * MAX_BYTES,
]


def revealed(found) -> dict[str, bytes]:
    return {name: delivered.value.reveal() for name, delivered in found.items()}


@contextlib.contextmanager
def watching(source, names):
    """A queue with one item per yield of the source's watch, which must end when it is stopped."""
    stop, seen = threading.Event(), queue.Queue()

    def follow():
        for _ in source.watch(names, stop):
            seen.put(True)

    thread = threading.Thread(target=follow)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join(10)
        assert not thread.is_alive()


def wait_for(seen, read, expected):
    """Read after each yield until the result is the expected one."""
    while revealed(read()) != expected:
        seen.get(timeout=10)


@pytest.mark.parametrize("value", EXACT, ids=lambda value: f"{len(value)} bytes")
def test_a_folder_gives_exact_bytes(tmp_path, value):
    """A file's content is the value, with nothing cut and nothing converted."""
    (tmp_path / "a.b-c_d").write_bytes(value)
    found = FolderSource(tmp_path).read(["a.b-c_d"])
    assert found == {"a.b-c_d": Delivered(SecretValue(value), None, str(tmp_path / "a.b-c_d"))}


def test_a_missing_file_is_absent_from_the_result(tmp_path):
    """It is no error, and does not affect the others."""
    (tmp_path / "here").write_bytes(b"1")
    assert revealed(FolderSource(tmp_path).read(["gone", "here"])) == {"here": b"1"}


def test_a_file_that_is_missing_for_a_moment_is_found(tmp_path, monkeypatch):
    """A file that is replaced, but not by a rename, is looked for a second time."""
    monkeypatch.setattr(
        "gusset.secrets.sources.folder.time.sleep", lambda _: (tmp_path / "late").write_bytes(b"1")
    )
    assert revealed(FolderSource(tmp_path).read(["late"])) == {"late": b"1"}


def test_a_missing_folder_is_an_error_if_it_must_exist(tmp_path):
    """A typing mistake in --secrets-dir must not look like a folder without secrets."""
    with pytest.raises(Unreachable, match="there is no folder"):
        FolderSource(tmp_path / "nowhere").read(["a"])
    assert FolderSource(tmp_path / "nowhere", must_exist=False).read(["a"]) == {}


def test_names_are_checked_before_any_path_is_made(tmp_path):
    """No name reaches outside the folder, not even to find out whether a file exists."""
    (tmp_path / "outside").write_bytes(b"no")
    (tmp_path / "folder").mkdir()
    for source in (FolderSource(tmp_path / "folder"), EnvironmentSource({"TRUSS_SECRET_../outside": "no"})):
        for name in ("../outside", str(tmp_path / "outside"), "..", "a/../../outside"):
            with pytest.raises(InvalidName):
                source.read([name])
    with pytest.raises(InvalidName):
        next(FolderSource(tmp_path).watch(["../outside"], threading.Event()))


def test_a_file_that_is_too_large_is_refused(tmp_path):
    """The error names the file and the limit, and no byte of the file."""
    (tmp_path / "big").write_bytes(b"A" * (MAX_BYTES + 1))
    with pytest.raises(InvalidValue, match=r"big has more than 65,536 bytes") as caught:
        FolderSource(tmp_path).read(["big"])
    assert "AAA" not in str(caught.value)


def test_a_folder_or_pipe_in_place_of_a_file_is_an_error(tmp_path):
    """Docker creates a folder for a missing bind mount. Reading a pipe must not block."""
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name in ("folder", "pipe"):
        with pytest.raises(Unreachable, match="not a regular file"):
            FolderSource(tmp_path).read([name])


def test_a_file_in_place_of_the_folder_is_an_error(tmp_path):
    """It is never treated as an empty folder."""
    (tmp_path / "file").write_bytes(b"")
    for must_exist in (True, False):
        with pytest.raises(Unreachable, match="not a directory"):
            FolderSource(tmp_path / "file", must_exist=must_exist).read(["a"])


def test_a_file_that_may_not_be_read_is_denied(tmp_path):
    """That is different from missing. Runs without the privileges of root."""
    (tmp_path / "mine").write_bytes(b"1")
    (tmp_path / "mine").chmod(0)
    script = (
        "import sys; from pathlib import Path; from gusset.errors import Denied;"
        "from gusset.secrets.sources.folder import FolderSource\n"
        "try: FolderSource(Path(sys.argv[1])).read(['mine'])\n"
        "except Denied as error: print(error)"
    )
    command = [*as_ordinary_process(), sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "permission denied" in done.stdout


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.EACCES, Denied),
        (errno.EPERM, Denied),
        (errno.EIO, Unreachable),
        (errno.ESTALE, Unreachable),
        (errno.ETIMEDOUT, Unreachable),
        (errno.ENOTCONN, Unreachable),
    ],
)
def test_an_error_of_the_file_system_never_means_missing(tmp_path, monkeypatch, number, expected):
    """A failing disk or network mount is an error."""
    (tmp_path / "a").write_bytes(b"1")
    real = os.open

    def failing(path, *args, **kwargs):
        if str(path) == str(tmp_path / "a"):
            raise OSError(number, os.strerror(number), str(path))
        return real(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", failing)
    with pytest.raises(expected, match=str(tmp_path / "a")):
        FolderSource(tmp_path).read(["a"])


def test_every_way_to_change_a_file_is_noticed(tmp_path):
    """Replacing by rename, writing in place, adding and deleting."""
    source = FolderSource(tmp_path)
    (tmp_path / "a").write_bytes(b"one")
    with watching(source, ["a", "b"]) as seen:
        wait_for(seen, lambda: source.read(["a", "b"]), {"a": b"one"})
        (tmp_path / ".new").write_bytes(b"two")
        (tmp_path / ".new").rename(tmp_path / "a")
        wait_for(seen, lambda: source.read(["a", "b"]), {"a": b"two"})
        (tmp_path / "a").write_bytes(b"owt")
        wait_for(seen, lambda: source.read(["a", "b"]), {"a": b"owt"})
        (tmp_path / "b").write_bytes(b"new")
        wait_for(seen, lambda: source.read(["a", "b"]), {"a": b"owt", "b": b"new"})
        (tmp_path / "a").unlink()
        wait_for(seen, lambda: source.read(["a", "b"]), {"b": b"new"})


def test_a_folder_is_watched_without_inotify(tmp_path, monkeypatch):
    """Polling notices changes where no inotify handle is available."""
    monkeypatch.setattr("gusset.secrets.sources.inotify.Inotify.open", lambda: None)
    source = FolderSource(tmp_path)
    with watching(source, ["a"]) as seen:
        (tmp_path / "a").write_bytes(b"one")
        wait_for(seen, lambda: source.read(["a"]), {"a": b"one"})


def test_the_swap_of_a_kubernetes_mount_is_noticed(tmp_path):
    """Names are links into a folder behind a link that is swapped; both values are read."""

    def publish(generation, value):
        (tmp_path / generation).mkdir()
        (tmp_path / generation / "token").write_bytes(value)
        (tmp_path / "..data_tmp").symlink_to(generation)
        (tmp_path / "..data_tmp").rename(tmp_path / "..data")

    publish("..2026_01", b"one")
    (tmp_path / "token").symlink_to("..data/token")
    source = FolderSource(tmp_path)
    with watching(source, ["token"]) as seen:
        wait_for(seen, lambda: source.read(["token"]), {"token": b"one"})
        publish("..2026_02", b"two")
        wait_for(seen, lambda: source.read(["token"]), {"token": b"two"})


def test_a_folder_that_appears_later_is_watched(tmp_path):
    """The default folder may be mounted after the start."""
    source = FolderSource(tmp_path / "later", must_exist=False)
    with watching(source, ["a"]) as seen:
        assert source.read(["a"]) == {}
        (tmp_path / "later").mkdir()
        (tmp_path / "later" / "a").write_bytes(b"one")
        wait_for(seen, lambda: source.read(["a"]), {"a": b"one"})


def test_a_variable_is_found_by_its_exact_name():
    """The prefix and the exact name; an empty variable is a value; the origin names the variable."""
    source = EnvironmentSource(
        {"TRUSS_SECRET_a-b": "v\n", "TRUSS_SECRET_e": "", "a-b": "no", "TRUSS_SECRET_A-B": "no"}
    )
    assert revealed(source.read(["a-b", "e", "missing"])) == {"a-b": b"v\n", "e": b""}
    assert source.read(["e"])["e"].origin == "TRUSS_SECRET_e"


def test_values_in_the_environment_are_exact_bytes():
    """Bytes that are not UTF-8 are returned as they were set."""
    text = os.fsdecode(b"\xff\xfe\xc3\xa9")
    assert revealed(EnvironmentSource({"TRUSS_SECRET_x": text}).read(["x"])) == {"x": b"\xff\xfe\xc3\xa9"}


def test_the_environment_is_copied():
    """The variables may be removed from the process once the source exists."""
    environ = {"TRUSS_SECRET_x": "1"}
    source = EnvironmentSource(environ)
    environ.clear()
    assert revealed(source.read(["x"])) == {"x": b"1"}


def test_a_variable_that_is_too_long_is_refused():
    """Its value is not shown."""
    with pytest.raises(InvalidValue) as caught:
        EnvironmentSource({"TRUSS_SECRET_x": "A" * (MAX_BYTES + 1)}).read(["x"])
    assert "AAA" not in str(caught.value)


def test_a_watch_of_the_environment_only_waits_for_its_stop():
    """It yields nothing."""
    with watching(EnvironmentSource({}), ["x"]) as seen:
        pass
    assert seen.empty()


def test_sources_print_no_values():
    """A source in a log line or in a traceback's locals shows no value."""
    source = EnvironmentSource({"TRUSS_SECRET_x": "s3cret"})
    assert "s3cret" not in f"{source!r} {vars(source)!r} {source.read(['x'])!r}"


def test_a_chain_looks_for_missing_secrets_in_the_next_source(tmp_path):
    """The first source that has a name wins, also with an empty value. The order is that of the names."""
    (tmp_path / "a").write_bytes(b"folder")
    (tmp_path / "empty").write_bytes(b"")
    environ = EnvironmentSource(
        {"TRUSS_SECRET_a": "env", "TRUSS_SECRET_b": "env", "TRUSS_SECRET_empty": "env"}
    )
    found = ChainSource([FolderSource(tmp_path), environ]).read(["c", "b", "empty", "a"])
    assert list(found) == ["b", "empty", "a"]
    assert revealed(found) == {"b": b"env", "empty": b"", "a": b"folder"}


def test_a_chain_stops_at_an_error(tmp_path):
    """After an error of a source, the next one is not read."""
    environ = EnvironmentSource({"TRUSS_SECRET_a": "env"})
    with pytest.raises(Unreachable):
        ChainSource([FolderSource(tmp_path / "nowhere"), environ]).read(["a"])
    (tmp_path / "a").mkdir()
    with pytest.raises(Unreachable):
        ChainSource([FolderSource(tmp_path), environ]).read(["a"])


def test_a_chain_reads_no_more_sources_than_needed(tmp_path):
    """When all names are found, a later source that is broken has no effect."""
    (tmp_path / "a").write_bytes(b"1")
    chain = ChainSource([FolderSource(tmp_path), FolderSource(tmp_path / "nowhere")])
    assert revealed(chain.read(["a"])) == {"a": b"1"}


def test_a_chain_watches_all_its_sources(tmp_path):
    """A change in any of them is noticed, and all threads end with the watch."""
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
    before = set(threading.enumerate())
    chain = ChainSource(
        [FolderSource(tmp_path / "one"), FolderSource(tmp_path / "two"), EnvironmentSource({})]
    )
    with watching(chain, ["a"]) as seen:
        (tmp_path / "two" / "a").write_bytes(b"second")
        wait_for(seen, lambda: chain.read(["a"]), {"a": b"second"})
        (tmp_path / "one" / "a").write_bytes(b"first")
        wait_for(seen, lambda: chain.read(["a"]), {"a": b"first"})
    eventually(lambda: set(threading.enumerate()) <= before)


def test_a_chain_watch_that_is_closed_early_ends_its_threads(tmp_path):
    """Closing the iterator leaves no thread and no handle behind."""
    before = set(threading.enumerate())
    watch = ChainSource([FolderSource(tmp_path)]).watch(["a"], threading.Event())
    next(watch)
    watch.close()
    eventually(lambda: set(threading.enumerate()) <= before)


class BrokenSource(EnvironmentSource):
    """Its watch raises an error that quotes a value, `failures` times, then follows `changed`."""

    def __init__(self, failures):
        super().__init__({})
        self.failures = failures
        self.changed = threading.Event()

    def watch(self, names, stop):
        if self.failures:
            self.failures -= 1
            raise KeyError("s3cret-in-a-message")
        while not stop.is_set():
            if self.changed.wait(0.05):
                self.changed.clear()
                yield


def test_a_chain_goes_on_watching_a_source_that_has_failed(caplog):
    """It says at once that something may have changed, and why in the log, without the error's message."""
    source = BrokenSource(failures=2)
    chain = ChainSource([source])
    with caplog.at_level(logging.ERROR), watching(chain, ["a"]) as seen:
        for _ in range(2):
            seen.get(timeout=10)
        eventually(lambda: not source.failures)
        source.changed.set()
        seen.get(timeout=10)
    assert caplog.text.count("KeyError at test_source.py") == 2
    assert "s3cret" not in caplog.text


def test_a_chain_reports_a_source_that_cannot_be_watched(tmp_path):
    """As its last error, which names no value. Other sources are followed meanwhile."""
    chain = ChainSource([BrokenSource(failures=10**6), FolderSource(tmp_path)])
    with watching(chain, ["a"]) as seen:
        eventually(lambda: chain.last_error is not None)
        assert chain.last_error == "BrokenSource cannot be watched, which is a bug in gusset (KeyError)"
        (tmp_path / "a").write_bytes(b"1")
        wait_for(seen, lambda: chain.read(["a"]), {"a": b"1"})
