class Model:
    def predict(self, model_input):
        return [2**70, model_input]
