import hashlib
import hmac


class Model:
    """Signs texts with a key that only the model and its owner know."""

    def __init__(self, **kwargs):
        self._secrets = kwargs["secrets"]

    def predict(self, inputs):
        key = self._secrets["signing_key"]
        print(f"signing with {key}")  # a careless line: gusset masks the value
        signature = hmac.new(key.encode(), inputs["text"].encode(), hashlib.sha256)
        return {"signature": signature.hexdigest()}
