"""A small GPT: token and position embeddings, pre-norm blocks of causal attention and a GELU network, and a tied output layer.

After Radford et al., "Language Models are Unsupervised Multitask Learners" (2019), at the size of a toy. Dropout is on, so that a resumed
run equals an uninterrupted one only if the random state was restored as well.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Shape:
    vocabulary: int
    context: int = 64
    layers: int = 6
    heads: int = 6
    width: int = 192
    dropout: float = 0.1


class Block(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads, self.dropout = shape.heads, shape.dropout
        self.norm_attention = nn.LayerNorm(shape.width)
        self.qkv = nn.Linear(shape.width, 3 * shape.width)
        self.joined = nn.Linear(shape.width, shape.width)
        self.norm_network = nn.LayerNorm(shape.width)
        self.network = nn.Sequential(
            nn.Linear(shape.width, 4 * shape.width), nn.GELU(), nn.Linear(4 * shape.width, shape.width), nn.Dropout(shape.dropout)
        )

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        split = (batch, length, self.heads, width // self.heads)
        query, key, value = (part.reshape(split).transpose(1, 2) for part in self.qkv(self.norm_attention(x)).split(width, dim=2))
        scores = (query @ key.transpose(2, 3)) * (width // self.heads) ** -0.5
        later = torch.ones(length, length, dtype=torch.bool).triu(1)
        weights = F.dropout(scores.masked_fill(later, -torch.inf).softmax(dim=3), self.dropout, self.training)
        x = x + self.joined((weights @ value).transpose(1, 2).reshape(batch, length, width))
        return x + torch.as_tensor(self.network(self.norm_network(x)))


class GPT(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.token = nn.Embedding(shape.vocabulary, shape.width)
        self.position = nn.Embedding(shape.context, shape.width)
        self.blocks = nn.Sequential(*(Block(shape) for _ in range(shape.layers)))
        self.norm = nn.LayerNorm(shape.width)
        self.output = nn.Linear(shape.width, shape.vocabulary, bias=False)
        self.output.weight = self.token.weight  # tied: a checkpoint stores it once
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, codes: Tensor) -> Tensor:
        places = torch.arange(codes.shape[1])
        return torch.as_tensor(self.output(self.norm(self.blocks(self.token(codes) + self.position(places)))))

    def loss(self, codes: Tensor) -> Tensor:
        """Mean cross entropy of the next character, in nats; `codes` is (batch, context + 1)."""
        return F.cross_entropy(self(codes[:, :-1]).flatten(0, 1), codes[:, 1:].flatten())
