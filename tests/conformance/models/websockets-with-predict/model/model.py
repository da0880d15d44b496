class Model:
    def predict(self, model_input):
        return None

    async def websocket(self, websocket):
        pass
