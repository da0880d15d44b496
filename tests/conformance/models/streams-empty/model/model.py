class Model:
    def predict(self, model_input):
        yield ""
        yield from model_input
