import fastapi


class Model:
    async def predict(self, request: fastapi.Request):
        return {"length": len(await request.body())}
