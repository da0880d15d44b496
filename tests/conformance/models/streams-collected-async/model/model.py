class Model:
    async def predict(self, model_input):
        yield "a"
        yield "b"
