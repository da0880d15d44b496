from starlette.exceptions import HTTPException


class Model:
    async def predict(self, model_input):
        raise HTTPException(503, 17, headers={"Retry-After": "9"})
