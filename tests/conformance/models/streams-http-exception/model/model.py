from fastapi import HTTPException


class Model:
    def predict(self, model_input):
        if not model_input:
            raise HTTPException(422, "give something")
        yield "ok"
