async def later(model_input):
    return {"later": model_input}


class Model:
    def predict(self, model_input):
        return later(model_input)
