from starlette.requests import Request


class Model:
    def preprocess(self, model_input, request: Request):
        return [model_input, request.headers["x-mine"]]

    def predict(self, model_input):
        return model_input

    async def postprocess(self, model_output, request: Request):
        return [*model_output, request.headers["x-mine"]]
