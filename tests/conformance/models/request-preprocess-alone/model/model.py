from starlette.requests import Request


class Model:
    async def preprocess(self, request: Request):
        return (await request.body()).decode()

    def predict(self, text):
        return text.upper()
