class Model:
    async def preprocess(self, model_input):
        if model_input == "pre":
            raise RuntimeError
        return model_input

    def predict(self, model_input):
        if model_input == "predict":
            raise RuntimeError
        return model_input

    async def postprocess(self, model_output):
        if model_output == "post":
            raise RuntimeError
        return model_output
