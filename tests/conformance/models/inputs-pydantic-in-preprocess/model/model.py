import pydantic


class Input(pydantic.BaseModel):
    n: int


class Model:
    def preprocess(self, model_input: Input):
        return model_input.n

    def predict(self, model_input):
        return model_input + 1
