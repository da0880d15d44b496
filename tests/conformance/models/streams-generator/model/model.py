class Model:
    def predict(self, model_input):
        for n in range(model_input):
            yield f"{n}\n"
            yield b"bytes\n"
