class Model:
    def predict(self, model_input):
        return {"text": "text", "int": 1, "float": 1.5, "yes": True, "none": None, "list": [1, (2, 3)]}[
            model_input
        ]
