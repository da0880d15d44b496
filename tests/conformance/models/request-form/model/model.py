from starlette.requests import Request


class Model:
    async def predict(self, request: Request):
        async with request.form() as form:
            return dict(form)
