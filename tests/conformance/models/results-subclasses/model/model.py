from collections import namedtuple
from enum import Enum

Point = namedtuple("Point", "x y")


class Color(str, Enum):
    RED = "red"


class Count(int):
    pass


class Model:
    def predict(self, model_input):
        return {
            "point": Point(1, 2.5),
            "color": Color.RED,
            "count": Count(3),
            1: "int",
            2.5: "float",
            None: "none",
            False: [],
        }
