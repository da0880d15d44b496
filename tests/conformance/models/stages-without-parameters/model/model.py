class Model:
    def predict(self):
        return "always"
