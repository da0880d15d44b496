class Model:
    def load(self):
        raise OSError("no such weights")

    def predict(self, model_input):
        return None
