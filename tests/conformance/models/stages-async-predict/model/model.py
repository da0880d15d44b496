import asyncio


class Model:
    async def predict(self, model_input):
        await asyncio.sleep(0)
        return {"got": model_input}
