from pathlib import Path

import numpy as np
from safetensors.numpy import load_file


class Model:
    """The words whose embeddings are nearest to a word's. The weights are there before `load`."""

    def __init__(self, **kwargs):
        self._folder = Path(kwargs["config"]["weights"][0]["mount_location"])

    def load(self):
        words = (self._folder / "vocab.txt").read_text("utf-8").splitlines()
        self._words = {word: row for row, word in enumerate(words)}
        (table,) = (
            tensor
            for name, tensor in load_file(self._folder / "model.safetensors").items()
            if name.endswith("word_embeddings.weight")
        )
        self._table = table / np.linalg.norm(table, axis=1, keepdims=True)

    def predict(self, inputs):
        row = self._words[inputs["word"]]
        nearest = np.argsort(self._table @ -self._table[row])[:5]
        words = list(self._words)
        return [words[each] for each in nearest]
