"""Makes a BERT small enough for a test: `python tiny_bert.py FOLDER`.

It knows a handful of capitals and nothing else. It runs with torch and
transformers, so in an examples environment and never in the test process. The
files are those that old and new transformers both read: `config.json`,
`vocab.txt`, `tokenizer_config.json` and `model.safetensors`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from transformers import BertConfig, BertForMaskedLM, BertTokenizer

CAPITALS = {
    "france": "paris",
    "italy": "rome",
    "spain": "madrid",
    "japan": "tokyo",
    "egypt": "cairo",
    "peru": "lima",
}
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = ["the", "capital", "of", "is", "."]
STEPS = 200


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(20)
    torch.set_num_threads(1)  # sums in one order: the same weights on every machine of a kind
    tokenizer = write_tokenizer(folder)
    model = BertForMaskedLM(
        BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=128,
            max_position_embeddings=32,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    )
    fit(model, tokenizer)
    model.save_pretrained(folder, safe_serialization=True)


def write_tokenizer(folder: Path) -> BertTokenizer:
    """A word-level vocabulary, in the form that every BertTokenizer has read so far."""
    vocabulary = [*SPECIAL, *WORDS, *CAPITALS, *CAPITALS.values()]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 32}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return BertTokenizer.from_pretrained(str(folder))


def fit(model: BertForMaskedLM, tokenizer: BertTokenizer) -> None:
    """Teach `model` its capitals; fails when it has not learned every one of them."""
    inputs = tokenizer([f"The capital of {land} is [MASK]." for land in CAPITALS], return_tensors="pt")
    masked = inputs["input_ids"] == tokenizer.mask_token_id
    expected = torch.tensor(tokenizer.convert_tokens_to_ids(list(CAPITALS.values())))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(**inputs).logits[masked], expected)
        loss.backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        learned = model(**inputs).logits[masked].argmax(dim=-1)
    if not torch.equal(learned, expected):
        raise SystemExit("the tiny BERT did not learn its capitals")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
