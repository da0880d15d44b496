class Model:
    def predict(self, model_input):
        yield "a"

    def postprocess(self, model_output):
        return model_output
