from fastapi.responses import JSONResponse


class Model:
    async def predict(self, model_input):
        return JSONResponse({"no": "tea"}, status_code=418)
