import os

AT_IMPORT = os.environ["GREETING"]


class Model:
    def predict(self, model_input):
        return [AT_IMPORT, os.environ["NUMBER"]]
