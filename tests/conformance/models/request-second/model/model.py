from starlette.requests import Request


class Model:
    def predict(self, model_input, request: Request):
        return [model_input, request.headers["x-mine"], request.query_params["q"], request.method]
