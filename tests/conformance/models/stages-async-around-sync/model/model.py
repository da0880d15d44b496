class Model:
    async def preprocess(self, model_input):
        return model_input + 1

    def predict(self, model_input):
        return model_input * 10

    async def postprocess(self, model_output):
        return {"out": model_output}
