from __future__ import annotations

from typing import Annotated, Optional

from starlette.requests import Request


class Model:
    def preprocess(self, model_input, request: Optional[Request]):
        return [model_input, request.headers["x-mine"]]

    def predict(self, model_input, request: Annotated[Request, "of the client"] = None):
        return [*model_input, request.headers["x-mine"]]
