class Model:
    def predict(self, model_input):
        return [float("nan"), float("inf"), 1.0]
