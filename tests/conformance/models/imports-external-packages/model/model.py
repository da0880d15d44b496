import outside


class Model:
    def predict(self, model_input):
        return outside.NAME
