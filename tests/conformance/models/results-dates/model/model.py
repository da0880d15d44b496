import dataclasses
import datetime
import decimal
import uuid


@dataclasses.dataclass
class Point:
    x: int


class Model:
    def predict(self, model_input):
        return [datetime.date(2026, 1, 2), decimal.Decimal("1.10"), uuid.UUID(int=1), Point(3)]
