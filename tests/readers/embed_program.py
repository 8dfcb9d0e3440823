"""What an inference container runs: only libraries of others. Embeds sentences with each model that it is given, and prints the vectors.

    python embed_program.py MODEL…      each an id of the hub ($HF_ENDPOINT says which) or a local folder
"""

from __future__ import annotations

import json
import sys

import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer

SENTENCES = ["A checkpoint is a directory of files.", "Ein Käsebrot, bitte.", "東京は大きい。"]


def with_transformers(name: str) -> list[list[float]]:
    tokenizer, model = AutoTokenizer.from_pretrained(name), AutoModel.from_pretrained(name).eval()
    batch = tokenizer(SENTENCES, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1)
    return ((hidden * mask).sum(1) / mask.sum(1)).tolist()


if __name__ == "__main__":
    torch.set_num_threads(1)
    found = {}
    for name in sys.argv[1:]:
        found[name] = {
            "transformers": with_transformers(name),
            "sentence_transformers": SentenceTransformer(name, device="cpu").encode(SENTENCES).tolist(),
        }
    print(json.dumps(found))
