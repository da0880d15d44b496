class Model:
    def __init__(self, config, secrets):
        self.config = config

    def predict(self, model_input):
        return self.config["python_version"]
