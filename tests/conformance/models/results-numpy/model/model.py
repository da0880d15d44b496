import numpy as np


class Model:
    def predict(self, model_input):
        return {
            "array": np.arange(4).reshape(2, 2),
            "int": np.int64(3),
            "float": np.float32(0.5),
            "nested": [np.array([True])],
        }
