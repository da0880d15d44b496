class Model:
    def predict(self, model_input):
        return {"cells": {(1, 2): "x"}}
