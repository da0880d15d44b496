class Model:
    def preprocess(self, model_input):
        return model_input + 1

    async def predict(self, model_input):
        return model_input * 10

    def postprocess(self, model_output):
        return {"out": model_output}
