class Model:
    def preprocess(self, model_input):
        yield from range(model_input)

    def predict(self, numbers):
        return sum(numbers)
