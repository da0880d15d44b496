import os


class Model:
    def __init__(self, data_dir):
        self.data_dir = data_dir

    def predict(self, model_input):
        return os.path.isdir(self.data_dir)
