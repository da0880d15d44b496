import asyncio


class Model:
    async def predict(self, model_input):
        yield "a"
        await asyncio.sleep(60)
        yield "b"
