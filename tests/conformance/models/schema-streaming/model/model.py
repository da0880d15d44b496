from typing import Generator

import pydantic


class Output(pydantic.BaseModel):
    m: int


class Model:
    def predict(self, model_input) -> Output | Generator[str, None, None]:
        return Output(m=1)
