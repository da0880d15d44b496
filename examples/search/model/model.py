import cachetools
import requests  # every model has it, as on Truss's server


class Model:
    """Asks an API that wants a key. Each request is sent with the newest value of the key."""

    def __init__(self, **kwargs):
        self._secrets = kwargs["secrets"]
        self._url = kwargs["config"]["model_metadata"]["api_url"]
        self._session = requests.Session()
        self._results = cachetools.TTLCache(maxsize=1024, ttl=60)

    def predict(self, inputs):
        text = inputs["text"]
        if text not in self._results:
            headers = {"Authorization": f"Bearer {self._secrets['search_api_key']}"}
            response = self._session.get(self._url, params={"q": text}, headers=headers, timeout=10)
            response.raise_for_status()
            self._results[text] = response.json()
        return self._results[text]
