class Model:
    def predict(self, model_input):
        return model_input

    def postprocess(self, model_output):
        for n in range(model_output):
            yield str(n)
