"""The hosted platform's paths lead to the same model, so that its clients need no change."""

from __future__ import annotations

from websockets.sync.client import connect

from tests.serving.conftest import ModelProject

ECHO = """
    class Model:
        def predict(self, model_input):
            return {"got": model_input}
"""
GREETING = """
    class Model:
        async def websocket(self, websocket):
            await websocket.send_text("hello")
"""
PREFIXES = ["/production", "/development", "/environments/staging", "/deployment/abc123"]


def test_the_platforms_paths_predict(serve: ModelProject) -> None:
    """Each prefix with `/predict`, and with `/sync` before any path of the server."""
    served = serve(ECHO).ready()
    paths = [f"{prefix}/predict" for prefix in PREFIXES]
    for prefix in ["", *PREFIXES]:
        paths += [f"{prefix}/sync/predict", f"{prefix}/sync/v1/models/model:predict"]
    for path in paths:
        response = served.predict({"n": 1}, path=path)
        assert (path, response.status_code, response.json()) == (path, 200, {"got": {"n": 1}})
    assert served.get("/sync").text == served.get("/sync/").text == "true"
    assert served.get("/production/sync/v1/models/model").json() == {}
    assert served.get("/production/predict").status_code == 405


def test_other_paths_are_unknown(serve: ModelProject) -> None:
    """A prefix stands once, and only before the paths that the platform has."""
    served = serve(ECHO).ready()
    for path in ["/production/predict/x", "/elsewhere/predict", "/environments//predict", "/syncpredict"]:
        assert (path, served.predict(1, path=path).status_code) == (path, 404)
    assert served.predict(1, path="/sync" * 5000 + "/predict").status_code == 404


def test_the_platforms_websocket_paths_reach_the_model(serve: ModelProject) -> None:
    """`/websocket` below each prefix, as well as the server's own path."""
    served = serve(GREETING).ready()
    address = served.address.replace("http", "ws", 1)
    for path in ["/v1/websocket", "/sync/v1/websocket", *(f"{prefix}/websocket" for prefix in PREFIXES)]:
        with connect(address + path) as websocket:
            assert websocket.recv() == "hello"


def test_the_list_of_models_has_the_one_model(serve: ModelProject) -> None:
    """In the form that OpenAI's clients read."""
    models = serve(ECHO).ready().get("/v1/models").json()
    assert models["object"] == "list"
    assert [(model["id"], model["object"]) for model in models["data"]] == [("tiny", "model")]


def test_routes_that_are_not_served_respond_with_501(serve: ModelProject) -> None:
    """The error says what to use instead."""
    served = serve(ECHO).ready()
    for path in ["/async_predict", "/production/async_predict", "/async_request/1", "/environments/x/wake"]:
        response = served.predict(1, path=path)
        assert (path, response.status_code) == (path, 501)
        assert "/predict" in response.json()["error"]
