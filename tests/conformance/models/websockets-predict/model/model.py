class Model:
    async def websocket(self, websocket):
        pass
