import signal


class Model:
    def load(self):
        signal.signal(signal.SIGUSR1, lambda number, frame: None)

    def predict(self, model_input):
        return "set"
