class Model:
    def predict(self, model_input):
        return [type(each).__name__ for each in model_input] + model_input
