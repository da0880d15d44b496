class Model:
    def websocket(self, websocket):
        pass
