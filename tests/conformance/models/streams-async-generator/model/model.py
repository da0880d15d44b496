import asyncio


class Model:
    async def predict(self, model_input):
        for n in range(model_input):
            await asyncio.sleep(0)
            yield str(n)
