import sys


class Model:
    def load(self):
        sys.exit(3)

    def predict(self, model_input):
        return None
