class Model:
    def predict(self, model_input, request, more):
        return None
