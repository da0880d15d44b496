class Model:
    async def preprocess(self, model_input):
        return [model_input]

    async def predict(self, model_input):
        return [*model_input, "predicted"]

    async def postprocess(self, model_output):
        return {"out": model_output}
