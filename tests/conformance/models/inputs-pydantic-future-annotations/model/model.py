from __future__ import annotations

import pydantic


class Input(pydantic.BaseModel):
    n: int


class Model:
    def predict(self, model_input: Input) -> Input:
        return Input(n=model_input.n + 1)
