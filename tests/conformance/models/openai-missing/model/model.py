class Model:
    def predict(self, model_input):
        return "predict"
