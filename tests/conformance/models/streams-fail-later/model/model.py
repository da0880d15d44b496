class Model:
    def predict(self, model_input):
        yield "a"
        raise ValueError("not shown")
