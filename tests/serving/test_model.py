"""What a model's code gets, and what happens when it is not right."""

from __future__ import annotations

import httpx
import pytest

from tests.serving.conftest import PATIENCE, ModelProject, eventually

VALUE = b"s3cr3t-v4lue-0123456789"


def test_a_synchronous_predict_gets_the_parsed_body(serve: ModelProject) -> None:
    """A plain `predict` gets the parsed body, and its result is the response."""
    served = serve("class Model:\n    def predict(self, x):\n        return {'twice': x['n'] * 2}\n").ready()
    response = served.predict({"n": 21})
    assert (response.status_code, response.json()) == (200, {"twice": 42})
    assert response.headers["content-type"] == "application/json"


def test_a_coroutine_runs_on_the_servers_loop(serve: ModelProject) -> None:
    """A coroutine runs on the server's loop, and `load` may be one too."""
    served = serve(
        """
        import asyncio
        class Model:
            async def load(self):
                self.loop = asyncio.get_running_loop()
            async def predict(self, x):
                await asyncio.sleep(0)
                return [x, asyncio.get_running_loop() is self.loop]
        """
    ).ready()
    assert served.predict("hi").json() == ["hi", True]


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_stages_run_in_order(serve: ModelProject, kind: str) -> None:
    """`preprocess`, `predict` and `postprocess` each get what the one before returned."""
    served = serve(
        f"""
        class Model:
            def preprocess(self, x):
                return x + ["pre"]
            {kind} predict(self, x):
                return x + ["predict"]
            def postprocess(self, x):
                return x + ["post"]
        """
    ).ready()
    assert served.predict([]).json() == ["pre", "predict", "post"]


def test_init_gets_only_the_arguments_that_it_takes(serve: ModelProject) -> None:
    """`__init__` gets by keyword those of the five arguments that its signature has."""
    served = serve(
        """
        class Model:
            def __init__(self, config, data_dir, lazy_data_resolver):
                lazy_data_resolver.block_until_download_complete()
                self.seen = [config["model_name"], data_dir.is_absolute(), data_dir.name]
            def predict(self, x):
                return self.seen
        """
    ).ready()
    assert served.predict().json() == ["tiny", True, "data"]


def test_init_gets_all_arguments_with_kwargs(serve: ModelProject) -> None:
    """With `**kwargs` there are all five."""
    served = serve(
        """
        class Model:
            def __init__(self, **kwargs):
                self.seen = sorted(kwargs)
            def predict(self, x):
                return self.seen
        """
    ).ready()
    assert served.predict().json() == ["config", "data_dir", "environment", "lazy_data_resolver", "secrets"]


def test_the_model_can_import_its_own_modules_and_packages(serve: ModelProject) -> None:
    """Relative and absolute imports work inside `model/`, and `packages/` is importable."""
    serve.file("model/helper.py", "A = 1")
    serve.file("model/deep/part.py", "B = 2")
    serve.file("packages/bundled_thing.py", "C = 3")
    served = serve(
        """
        from .helper import A
        from model.deep.part import B
        from bundled_thing import C
        import os
        class Model:
            def predict(self, x):
                return [A, B, C, __name__, os.environ["FROM_CONFIG"]]
        """
    ).ready()
    assert served.predict().json() == [1, 2, 3, "model.model", "yes"]


def test_a_folder_with_only_main_py_is_served(serve: ModelProject) -> None:
    """A folder with only `main.py` works too."""
    served = serve(
        "class Model:\n    def predict(self, x):\n        return x\n", model_file="main.py"
    ).ready()
    assert served.predict(1).json() == 1


def test_load_is_tried_twice(serve: ModelProject) -> None:
    """A `load` that fails once is called again on the same object."""
    served = serve(
        """
        class Model:
            tries = 0
            def load(self):
                self.tries += 1
                if self.tries == 1:
                    raise OSError("the hub is away")
            def predict(self, x):
                return self.tries
        """
    ).ready()
    assert served.predict().json() == 2
    assert "Retrying" in served.stderr


FAILING = {
    "import": "raise RuntimeError('no use: ' + __import__('pathlib').Path(SECRET).read_text())",
    "__init__": """
        class Model:
            def __init__(self, secrets):
                raise RuntimeError('no use: ' + secrets['token'])
            def predict(self, x): ...
        """,
    "load": """
        class Model:
            def __init__(self, secrets):
                self.secrets = secrets
            def load(self):
                raise RuntimeError('no use: ' + self.secrets['token'])
            def predict(self, x): ...
        """,
    "exit": """
        import sys
        class Model:
            def __init__(self, secrets):
                sys.exit('no use: ' + secrets['token'])
            def predict(self, x): ...
        """,
}


@pytest.mark.parametrize("step", FAILING)
def test_a_failed_start_ends_with_the_models_traceback(serve: ModelProject, step: str) -> None:
    """The exit status is 9; the last word is the traceback from the model's file on, the value masked."""
    serve.secret("token", VALUE)
    code = FAILING[step].replace("SECRET", repr(str(serve.secrets_dir / "token")))
    served = serve(code)
    assert served.ended() == 9
    assert "no use: ***" in served.stderr
    assert VALUE.decode() not in served.output
    assert "model/model.py" in served.stderr
    assert "gusset/serving" not in served.stderr


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        (
            "import no_such",
            "`requirements` names no-such: leave out --env current",
        ),
        ("import another.part", "`requirements` does not name it either: add another there"),
        ("import helper", "helper is part of model: import it as model.helper"),
    ],
)
def test_a_missing_module_is_reported_with_what_to_do(serve: ModelProject, line: str, hint: str) -> None:
    """Below the traceback: whether `requirements` names it, and what to type."""
    serve.file("model/helper.py", "A = 1")
    served = serve(f"{line}\nclass Model:\n    def predict(self, x):\n        return x\n")
    assert served.ended() == 9
    assert hint in served.stderr


def test_a_crash_while_starting_is_reported_with_its_signal(serve: ModelProject) -> None:
    """A process that just ends while the model starts is named with how it ended."""
    served = serve("import os\nos.kill(os.getpid(), 11)\n")
    assert served.ended() == 9
    assert "SIGSEGV" in served.stderr


def test_a_class_without_predict_ends_the_start(serve: ModelProject) -> None:
    """The message has the lines to add, and no traceback."""
    served = serve("class Model:\n    pass\n")
    assert served.ended() == 9
    assert "must have a `predict`" in served.stderr
    assert "def predict(self, model_input):" in served.stderr
    assert "Traceback" not in served.stderr


def test_a_file_without_the_class_ends_the_start(serve: ModelProject) -> None:
    """The message names file and class."""
    served = serve("class Other:\n    pass\n")
    assert served.ended() == 9
    assert "model/model.py has no class Model" in served.stderr


def test_three_parameters_are_refused(serve: ModelProject) -> None:
    """A signature that gusset cannot call is an error before `load`."""
    served = serve("class Model:\n    def predict(self, a, b, c):\n        return a\n")
    assert served.ended() == 9
    assert "`predict` method cannot have more than two arguments." in served.stderr


def test_an_exception_stays_in_the_log(serve: ModelProject) -> None:
    """The response says only that the model failed; the log has the traceback, masked."""
    serve.secret("token", VALUE)
    served = serve(
        """
        class Model:
            def __init__(self, secrets):
                self.secrets = secrets
            def predict(self, x):
                raise ValueError("with " + self.secrets["token"])
        """
    ).ready()
    response = served.predict()
    assert response.status_code == 500
    assert response.json() == {"error": "Internal Server Error (in model/chainlet)."}
    assert response.headers["x-baseten-error-code"] == "600"
    eventually(lambda: "ValueError: with ***" in served.stderr, "the traceback")
    assert VALUE.decode() not in served.output


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_exit_in_predict_is_an_error_like_any_other(serve: ModelProject, kind: str) -> None:
    """`sys.exit` in a request does not end the server."""
    served = serve(
        f"""
        import sys
        class Model:
            {kind} predict(self, x):
                if x:
                    sys.exit(3)
                return "still here"
        """
    ).ready()
    assert served.predict(True).status_code == 500
    assert served.predict(False).json() == "still here"


def test_an_undeclared_secret_is_named_only_in_the_log(serve: ModelProject) -> None:
    """The response is generic; the log names the secret and what to add where."""
    served = serve(
        """
        class Model:
            def __init__(self, secrets):
                self.secrets = secrets
            def predict(self, x):
                return self.secrets["other"]
        """
    ).ready()
    response = served.predict()
    assert response.json() == {"error": "Internal Server Error (in model/chainlet)."}
    eventually(lambda: "other: null" in served.stderr, "the advice")


def test_results_of_all_usual_types_become_json(serve: ModelProject) -> None:
    """Dates, decimals, NaN, large integers, odd keys and secrets have their usual JSON forms."""
    serve.secret("token", VALUE)
    served = serve(
        """
        import datetime, decimal
        class Model:
            def __init__(self, secrets):
                self.secrets = secrets
            def predict(self, x):
                return {
                    "date": datetime.date(2026, 1, 2), "decimal": decimal.Decimal("1.5"), "nan": float("nan"),
                    "big": 2**80, 1: (2, 3), "secret": self.secrets["token"], "lone": "\\ud800",
                }
        """
    ).ready()
    result = served.predict().json()
    assert result.pop("nan") is None  # and present
    assert result == {
        "date": "2026-01-02",
        "decimal": "1.5",
        "big": 2**80,
        "1": [2, 3],
        "secret": VALUE.decode(),
        "lone": "\ud800",
    }


def test_results_that_only_pythons_json_writes_become_json(serve: ModelProject) -> None:
    """Named tuples and other subclasses, and keys that are no texts, as `json.dumps` writes them."""
    served = serve(
        """
        import collections, dataclasses, datetime, enum, uuid
        @dataclasses.dataclass
        class Data:
            id: uuid.UUID
        Point = collections.namedtuple("Point", "x y")
        class Celsius(float): pass
        class Count(int): pass
        class Row(tuple): pass
        class Size(enum.IntEnum):
            SMALL = 1
        class Color(enum.Enum):
            RED = "red"
        class Model:
            def predict(self, x):
                return {
                    "point": Point(1, 2.5), "row": Row([1, Row()]), "celsius": Celsius(1.5), "count": Count(3),
                    "size": Size.SMALL, "color": Color.RED, "data": Data(uuid.UUID(int=1)), 1: "int", 2.5: "float", False: "bool", None: "none",
                    Count(7): "count", Size.SMALL + 3: "sum", Color.RED: "enum",
                    "lone": x, uuid.UUID(int=0): "uuid", datetime.date(2026, 1, 2): "date",
                }
        """
    ).ready()
    for lone in ("plain", "\ud800"):  # the second takes the slower of the two writers
        assert served.predict(lone).json() == {
            "point": [1, 2.5],
            "row": [1, []],
            "celsius": 1.5,
            "count": 3,
            "size": 1,
            "color": "red",
            "data": {"id": "00000000-0000-0000-0000-000000000001"},
            "1": "int",
            "2.5": "float",
            "false": "bool",
            "null": "none",
            "7": "count",
            "4": "sum",
            "red": "enum",
            "lone": lone,
            "00000000-0000-0000-0000-000000000000": "uuid",
            "2026-01-02": "date",
        }


def test_a_key_that_json_cannot_express_is_named_by_its_type(serve: ModelProject) -> None:
    """The error is about the key, not about the whole map."""
    served = serve("class Model:\n    def predict(self, x):\n        return {'a': {(1, 2): x}}\n").ready()
    served.predict("private")
    eventually(lambda: "A key of type tuple is not JSON serializable" in served.output, "the log")
    assert "private" not in served.output


def test_the_working_directory_is_the_models_folder(serve: ModelProject) -> None:
    """So that paths within the folder work as in Truss's images; the folder for data exists always."""
    serve.file("model/note.txt", "from the folder")
    served = serve(
        """
        class Model:
            def __init__(self, data_dir):
                self.data_dir = data_dir
            def predict(self, x):
                return [open("model/note.txt").read(), self.data_dir.is_dir(), list(self.data_dir.iterdir())]
        """
    ).ready()
    assert served.predict().json() == ["from the folder", True, []]


def test_a_result_that_json_cannot_express_is_an_error_that_names_its_type(serve: ModelProject) -> None:
    """The error names the type and nothing of the value."""
    served = serve("class Model:\n    def predict(self, x):\n        return {'a': {1, 2, x}}\n").ready()
    response = served.predict("private")
    assert response.status_code == 500
    assert response.json() == {
        "error": "Unhandled exception: TypeError: Object of type set is not JSON serializable"
    }


def test_a_synchronous_model_runs_as_many_calls_as_the_config_says(serve: ModelProject) -> None:
    """As many calls of `predict` run at a time as the config says, and not one more."""
    served = serve(
        """
        import threading
        class Model:
            def __init__(self):
                self.together = threading.Barrier(3)
            def predict(self, x):
                self.together.wait(20)
                return threading.current_thread().name
        """,
        concurrency=3,
    ).ready()
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(3) as pool:
        names = {response.json() for response in pool.map(served.predict, range(3))}
    assert len(names) == 3


def test_libraries_that_choose_by_exact_type_write_a_secret_as_text(serve: ModelProject) -> None:
    """PyYAML looks the type up in a table; a look-up's result must be in it, whenever it is imported."""
    serve.secret("token", VALUE)
    served = serve(
        """
        class Model:
            def __init__(self, secrets):
                self.secrets = secrets
            def predict(self, x):
                import yaml
                data = {"token": self.secrets["token"]}
                return [yaml.safe_dump(data), yaml.dump(data), yaml.__loader__.get_source("yaml") != ""]
        """
    ).ready()
    expected = f"token: {VALUE.decode()}\n"
    assert served.predict().json() == [expected, expected, True]


@pytest.mark.parametrize(
    "predict",
    [
        "def predict(self, x): return gc.collect()",
        "async def predict(self, x): return gc.collect()",
        "def predict(self, x): yield str(gc.collect())",
        "async def predict(self, x): yield str(gc.collect())",
    ],
)
def test_a_request_leaves_no_garbage_in_cycles(serve: ModelProject, predict: str) -> None:
    """What requests use is freed with them, so that no garbage collection has to look for it."""
    served = serve(f"import gc\ngc.disable()\nclass Model:\n    {predict}\n").ready()
    with httpx.Client(base_url=served.address, timeout=PATIENCE) as client:  # one connection
        found = [int(client.post("/predict", content=b"1").text) for _ in range(8)]
    assert found[3:] == [0] * 5  # the first ones import modules
