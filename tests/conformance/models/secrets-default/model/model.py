class Model:
    def __init__(self, **kwargs):
        self.secrets = kwargs["secrets"]

    def predict(self, model_input):
        return [self.secrets.get("other", "default"), "other" in self.secrets, list(self.secrets)]
