"""`Secrets`: what a model's code sees of its secrets."""

from __future__ import annotations

import copy
import logging
import os
import pickle
import queue
import threading

import pytest

from gusset.errors import GussetError, SecretNotDeclared, SecretNotSet, SecretNotText
from gusset.secrets.mapping import Secrets
from gusset.secrets.masking import Masker
from gusset.secrets.value import SecretText, SecretValue

TOKEN = b"hf_abcdefghijklmnop"


def secrets(**values: bytes) -> Secrets:
    declared = ["hf-token", "db", "binary", "unset"]
    return Secrets(declared, {name.replace("_", "-"): SecretValue(v) for name, v in values.items()})


def test_a_look_up_returns_the_exact_text():
    """By index and by get; the default is returned for a name without a value."""
    held = secrets(hf_token=TOKEN, db=b"")
    assert held["hf-token"] == TOKEN.decode()
    assert type(held["hf-token"]) is SecretText
    assert held["db"] == ""
    assert held.get("hf-token") == TOKEN.decode()
    assert held.get("unset") is None
    assert held.get("nowhere", "default") == "default"
    assert held.bytes("hf-token") == TOKEN


def test_it_covers_the_declared_names_that_have_a_value():
    """Length, iteration, views, `in` and dict() agree with one another, in the order of the config."""
    held = secrets(db=b"two", hf_token=b"one")
    assert list(held) == list(held.keys()) == ["hf-token", "db"]
    assert len(held) == len(held.items()) == len(held.values()) == 2
    assert dict(held) == dict(held.items()) == {**held} == {"hf-token": "one", "db": "two"}
    assert list(held.values()) == ["one", "two"]
    assert "db" in held
    assert "unset" not in held
    assert ("db", "two") in held.items()
    assert bool(secrets()) is False
    assert held.declared == ("hf-token", "db", "binary", "unset")
    assert held._base_secrets == {"hf-token": None, "db": None, "binary": None, "unset": None}


def test_only_declared_names_are_kept():
    """A value under another name never reaches the model."""
    held = Secrets(["a"], {"a": b"1", "b": b"2"})
    assert list(held) == ["a"]
    held.replace({"a": SecretValue(b"3"), "b": SecretValue(b"4")})
    assert dict(held) == {"a": "3"}


def test_an_undeclared_name_says_what_to_add():
    """The error is a KeyError that names the line to write and the file."""
    with pytest.raises(SecretNotDeclared, match=r'add "x: null" under "secrets:" in config.yaml') as caught:
        secrets()["x"]
    assert isinstance(caught.value, KeyError)
    with pytest.raises(SecretNotDeclared, match=r"in other\.yaml"):
        Secrets([], {}, config_file="other.yaml").bytes("x")


def test_another_spelling_is_pointed_out():
    """`hf_token` where the config says `hf-token` is not called undeclared without a word."""
    with pytest.raises(SecretNotDeclared, match=r"config\.yaml spells it 'hf-token'"):
        secrets(hf_token=TOKEN)["hf_token"]


def test_a_declared_name_without_a_value_says_how_to_set_it():
    """The error is a KeyError of its own, with the command that adds the secret."""
    with pytest.raises(SecretNotSet, match="gusset secret set unset") as caught:
        secrets()["unset"]
    assert isinstance(caught.value, KeyError)


@pytest.mark.parametrize("wrong", ["two words", "", "x\n", 3, None, "s3cr3t/with+text=="])
def test_an_invalid_name_is_not_repeated(wrong):
    """What stands where a name should be is now and then a value."""
    with pytest.raises(SecretNotDeclared) as caught:
        secrets()[wrong]
    assert "s3cr3t" not in str(caught.value)


def test_a_value_that_is_not_utf8_is_available_as_bytes():
    """Bytes give it; each access as text is an error that names the secret; its name is among the names."""
    held = secrets(binary=b"\xff\xfe\x00key-material", db=b"x")
    assert held.bytes("binary") == b"\xff\xfe\x00key-material"
    assert list(held) == ["db", "binary"]
    assert "binary" in held
    for access in (lambda: held["binary"], lambda: held.get("binary", ""), lambda: dict(held)):
        with pytest.raises(SecretNotText, match="'binary' is not UTF-8") as caught:
            access()
        assert not isinstance(caught.value, KeyError | UnicodeError)
        assert "key-material" not in str(caught.value)
        assert caught.value.__cause__ is None
    with pytest.raises(SecretNotText):
        list(held.items())
    with pytest.raises(SecretNotText):
        list(held.values())


def test_nothing_printed_shows_a_value():
    """Neither the mapping nor its views nor a dict made of it shows more than names."""
    held = secrets(hf_token=TOKEN)
    shown = f"{held} {held!r} {held.items()!r} {held.values()!r} {dict(held)} {list(held.items())}"
    assert "hf-token" in shown
    assert "unset (not set)" in shown
    assert TOKEN.decode() not in shown


def test_it_is_read_only_and_cannot_be_pickled():
    """Writing and pickling are refused, the latter with what to do instead."""
    held = secrets(hf_token=TOKEN)
    with pytest.raises(TypeError):
        held["hf-token"] = "x"
    with pytest.raises(AttributeError):
        held.other = 1
    with pytest.raises(TypeError, match="pass the values"):
        pickle.dumps(held)
    assert pickle.loads(pickle.dumps(held["hf-token"])) == TOKEN.decode()


def test_a_copy_of_an_object_that_holds_it_follows_rotations():
    """A copy is the same object; so are copies of the texts."""
    held = secrets(hf_token=TOKEN)
    assert copy.copy(held) is held
    assert copy.deepcopy({"secrets": held})["secrets"] is held
    text = held["hf-token"]
    assert copy.deepcopy([text])[0] is text


def test_look_ups_return_the_latest_values():
    """Look-ups follow a replacement at once; views taken before keep what they had."""
    held = secrets(hf_token=b"old", db=b"same")
    before = held.items()
    held.replace({"hf-token": SecretValue(b"new")})
    assert held["hf-token"] == "new"
    assert dict(before) == {"hf-token": "old", "db": "same"}
    with pytest.raises(SecretNotSet):
        held["db"]


def test_on_change_is_called_in_order_on_one_thread():
    """Callbacks see each change of their name: text, bytes where it is none, None when the secret is gone."""
    held = secrets(hf_token=b"v1", db=b"untouched")
    calls: queue.Queue = queue.Queue()
    held.on_change("hf-token", lambda value: calls.put((value, threading.current_thread())))
    held.on_change("db", lambda value: calls.put((value, threading.current_thread())))
    for new in (b"v2", b"v2", b"\xff", None, b"v3"):
        changed = {} if new is None else {"hf-token": SecretValue(new)}
        held.replace(changed | {"db": SecretValue(b"untouched")})
    seen = [calls.get(timeout=10) for _ in range(4)]
    assert [value for value, _ in seen] == ["v2", b"\xff", None, "v3"]
    assert type(seen[0][0]) is SecretText
    assert len({thread for _, thread in seen}) == 1
    assert seen[0][1] is not threading.current_thread()
    assert calls.empty()


def test_look_ups_return_the_new_value_before_the_callback():
    """A callback that reads the mapping never sees the value from before the change."""
    held = secrets(hf_token=b"old")
    seen: queue.Queue = queue.Queue()
    held.on_change("hf-token", lambda value: seen.put((value, held["hf-token"])))
    held.replace({"hf-token": SecretValue(b"new")})
    assert seen.get(timeout=10) == ("new", "new")


@pytest.mark.parametrize("with_masker", [True, False])
def test_a_failing_callback_is_logged_without_the_value(with_masker, caplog):
    """Its traceback is masked, and the callbacks after it are called all the same."""
    masker = Masker([SecretValue(TOKEN), SecretValue(b"other-secret-value")]) if with_masker else None
    held = Secrets(["a"], {"a": TOKEN}, masker=masker)
    done = threading.Event()

    def fail(value):
        raise ValueError(f"bad: {value} {value.encode().hex()}")

    held.on_change("a", fail)
    held.on_change("a", lambda value: done.set())
    with caplog.at_level(logging.ERROR, "gusset.secrets"):
        held.replace({"a": SecretValue(b"rotated-secret-value")})
        assert done.wait(10)
    assert "'a' failed" in caplog.text
    assert "bad: *** ***" in caplog.text
    assert "rotated-secret" not in caplog.text


def test_on_change_of_an_undeclared_name_is_an_error():
    """A callback that could never be called is refused when it is given."""
    with pytest.raises(SecretNotDeclared):
        secrets().on_change("nowhere", print)
    with pytest.raises(TypeError):
        secrets().on_change("db", None)


def test_a_forked_child_keeps_what_it_had():
    """A forked child looks values up in its own memory."""
    held = secrets(hf_token=TOKEN)
    held.on_change("hf-token", lambda value: None)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, held["hf-token"].encode())
        os._exit(0)
    os.waitpid(child, 0)
    held.replace({})
    assert os.read(reader, 100) == TOKEN
    os.close(reader)
    os.close(writer)


def test_errors_of_look_ups_are_gusset_errors():
    """All three causes are in gusset's error tree, with codes of their own."""
    codes = set()
    for name in ("nowhere", "unset", "binary"):
        with pytest.raises(GussetError) as caught:
            secrets(binary=b"\xff")[name]
        codes.add(caught.value.code)
    assert codes == {"secret_not_declared", "secret_not_set", "secret_not_text"}


def test_the_first_look_up_of_each_set_of_values_is_noted() -> None:
    """Once for each name and set, by text, bytes and items; neither `in` nor `previous` is a use."""
    used: list[tuple[int, str]] = []
    secrets = Secrets(
        ["a", "b", "c"],
        {"a": b"1", "b": b"2", "c": b"\xff"},
        on_first_use=lambda name: used.append((1, name)),
    )
    assert "a" in secrets and secrets.previous("a") is None and used == []
    assert (secrets["a"], secrets["a"], secrets.bytes("a"), secrets.bytes("c")) == ("1", "1", b"1", b"\xff")
    assert used == [(1, "a"), (1, "c")]
    secrets.replace({"a": SecretValue(b"3")}, on_first_use=lambda name: used.append((2, name)))
    assert list(secrets.items()) == [("a", "3")]
    assert used[2:] == [(2, "a")]


def test_the_value_before_is_there_while_it_is_valid() -> None:
    """Text with a masked `repr`, bytes if it is not UTF-8; an undeclared name is an error."""
    secrets = Secrets(["a", "b"], {"a": b"new", "b": b"new"}, previous={"a": b"old", "b": b"\xff"})
    before = secrets.previous("a")
    assert before == "old" and "old" not in repr(before) and secrets.previous("b") == b"\xff"
    secrets.replace({"a": SecretValue(b"new")})
    assert secrets.previous("a") is None
    with pytest.raises(SecretNotDeclared):
        secrets.previous("c")
