import copy


class Model:
    def __init__(self, **kwargs):
        self._settings = copy.deepcopy({"secrets": kwargs["secrets"], "top_k": 3})

    def predict(self, model_input):
        return self._settings["secrets"]["api_key"] == "the value"
