class Model:
    def predict(self, model_input):
        yield "é"
        yield b"b"
        yield 3
