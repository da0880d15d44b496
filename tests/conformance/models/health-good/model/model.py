class Model:
    def predict(self, model_input):
        return None

    async def is_healthy(self):
        return None
