class Model:
    def __init__(self, **kwargs):
        self.names = sorted(kwargs)
        self.config = kwargs["config"]
        kwargs["lazy_data_resolver"].block_until_download_complete()

    def predict(self, model_input):
        return {"names": self.names, "model_name": self.config["model_name"], "mine": self.config["mine"]}
