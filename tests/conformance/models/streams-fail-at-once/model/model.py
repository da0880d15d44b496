class Model:
    def predict(self, model_input):
        raise ValueError("not shown")
        yield
