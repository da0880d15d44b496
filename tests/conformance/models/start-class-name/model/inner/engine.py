class Doubler:
    def predict(self, model_input):
        return {"twice": 2 * model_input}
