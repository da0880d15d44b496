class Model:
    def preprocess(self, model_input):
        raise RuntimeError

    def predict(self, model_input):
        return None

    async def chat_completions(self, model_input):
        for n in range(3):
            yield f"data: {n}\n\n"
