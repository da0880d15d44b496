class Model:
    def predict(self, model_input):
        return {"got": model_input}
