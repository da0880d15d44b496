class Model:
    def predict(self, model_input):
        return "served"

    def is_healthy(self):
        return False
