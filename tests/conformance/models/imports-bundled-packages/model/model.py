import bundled


class Model:
    def predict(self, model_input):
        return bundled.NAME
