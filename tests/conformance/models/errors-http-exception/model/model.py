from fastapi import HTTPException


class Model:
    def predict(self, model_input):
        raise HTTPException(status_code=model_input, detail={"why": ["because"]})
