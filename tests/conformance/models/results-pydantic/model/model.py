import pydantic


class Result(pydantic.BaseModel):
    n: int


class Model:
    def predict(self, model_input):
        return Result(n=1) if model_input == "top" else {"inside": [Result(n=2)]}
