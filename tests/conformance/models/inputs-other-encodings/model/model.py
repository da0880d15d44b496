import math


class Model:
    def predict(self, model_input):
        return math.isnan(model_input) if isinstance(model_input, float) else model_input
