import sys


class Model:
    def predict(self, model_input):
        if model_input == "exit":
            sys.exit(1)
        return "up"
