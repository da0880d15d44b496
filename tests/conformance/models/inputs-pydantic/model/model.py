import pydantic


class Top(pydantic.BaseModel):
    k: int = 1


class Row(pydantic.BaseModel):
    n: int


class Input(pydantic.BaseModel):
    rows: list[Row]
    top: Top = Top()


class Model:
    def predict(self, model_input: Input):
        return {"type": type(model_input).__name__, "n": model_input.rows[0].n}
