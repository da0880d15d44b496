class Model:
    def predict(self, model_input):
        yield "a"
        yield {"not": "a chunk"}
