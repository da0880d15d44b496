import pydantic
from starlette.requests import Request


class Input(pydantic.BaseModel):
    n: int


class Model:
    def predict(self, request: Request):
        return None

    def completions(self, model_input: Input, request: Request):
        return [model_input.n, request.url.path]
