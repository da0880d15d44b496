class Model:
    async def predict(self, model_input):
        yield "a"
        raise ValueError("not shown")
