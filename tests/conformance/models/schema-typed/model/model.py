import pydantic


class Input(pydantic.BaseModel):
    n: int


class Output(pydantic.BaseModel):
    m: int


class Model:
    def predict(self, model_input: Input) -> Output:
        return Output(m=model_input.n)
