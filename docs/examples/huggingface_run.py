"""A Hugging Face training that may be killed at any moment: start it again, and it goes on where its newest checkpoint is.

    python huggingface_run.py /runs/tiny-gpt
    torchrun --nproc-per-node 2 huggingface_run.py /runs/tiny-gpt
"""

from __future__ import annotations

import sys
import tempfile

import torch
from transformers import GPT2Config, GPT2LMHeadModel, TrainingArguments

from ckptstore_client.trainers.huggingface import StoreTrainer

VOCABULARY, LENGTH = 64, 16


class Texts(torch.utils.data.Dataset):
    """Forty texts of random tokens, the same each time."""

    def __init__(self) -> None:
        self.tokens = torch.randint(VOCABULARY, (40, LENGTH), generator=torch.Generator().manual_seed(1))

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.tokens[index], "labels": self.tokens[index]}


def train(checkpoints: str) -> None:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_positions=LENGTH, n_embd=16, n_layer=1, n_head=2))  # with dropout
    arguments = TrainingArguments(
        output_dir=tempfile.mkdtemp(),  # no checkpoint is written there
        max_steps=12,  # two epochs and a half
        per_device_train_batch_size=8,
        learning_rate=1e-2,
        warmup_steps=4,
        save_steps=2,
        logging_steps=2,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = StoreTrainer(model, arguments, train_dataset=Texts(), checkpoints=checkpoints, guard=True)
    trainer.train(resume_from_checkpoint=trainer.latest())  # None at the first start


if __name__ == "__main__":
    train(sys.argv[1])
