class Model:
    async def load(self):
        self.loaded = True

    def predict(self, model_input):
        return self.loaded
