class Model:
    def predict(self, model_input):
        raise KeyError("not shown")
