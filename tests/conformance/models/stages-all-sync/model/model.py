class Model:
    def preprocess(self, model_input):
        return [model_input]

    def predict(self, model_input):
        return [*model_input, "predicted"]

    def postprocess(self, model_output):
        return {"out": model_output}
