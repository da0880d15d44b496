class Model:
    def predict(self, model_input):
        return b"\x89PNG raw"
