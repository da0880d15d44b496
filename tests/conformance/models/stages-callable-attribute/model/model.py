import functools


def add(amount, model_input):
    return amount + model_input


class Model:
    def __init__(self):
        self.predict = functools.partial(add, 5)
