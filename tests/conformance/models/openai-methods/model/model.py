class Model:
    def predict(self, model_input):
        return "predict"

    def chat_completions(self, model_input):
        return ["chat", model_input]

    async def completions(self, model_input):
        return ["completions", model_input]

    def embeddings(self, model_input):
        return "embeddings"

    def messages(self, model_input):
        return "messages"

    def responses(self, model_input):
        return "responses"
