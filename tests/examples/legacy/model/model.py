from transformers import pipeline


class Model:
    """The fill-mask example in the spelling that many published models still have."""

    def __init__(self, **kwargs):
        self._repo_id = kwargs["config"]["model_metadata"]["repo_id"]
        self._secrets = kwargs["secrets"]
        self._fill_mask = None

    def load(self):
        self._fill_mask = pipeline(
            "fill-mask", model=self._repo_id, use_auth_token=self._secrets["hf_access_token"]
        )

    def predict(self, sentence):
        return self._fill_mask(sentence)
