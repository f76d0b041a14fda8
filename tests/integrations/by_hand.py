"""A training in plain PyTorch, with hooks of its own and float64 NumPy: what the readings of every loop must be."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from geomprobe import Reading
from tests import reference
from tests.tiny_models import tiny

__all__ = ["LEARNING_RATE", "ByHand"]

LEARNING_RATE = 0.1


class ByHand:
    """The training of the tiny Llama by SGD.

    Attributes:
        losses: the loss of each batch that was trained on.
    """

    def __init__(self, *, bf16: bool) -> None:
        self.losses: list[float] = []
        self._model = tiny().train()
        self._autocast = torch.autocast("cpu", torch.bfloat16, enabled=bf16)
        self._states: dict[str, list[Tensor]] = {}
        inner = self._model.model
        sites = {"embed": inner.embed_tokens, "final_norm": inner.norm}
        for site, module in (sites | {f"layer_{i:02d}": layer for i, layer in enumerate(inner.layers)}).items():
            module.register_forward_hook(partial(self._keep, site))

    def _keep(self, site: str, module: Any, arguments: Any, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output  # layers of older versions return tuples
        self._states.setdefault(site, []).extend(hidden.detach())

    def train(self, *steps: list[Tensor]) -> None:
        """Run optimizer steps, each of several batches."""
        optimizer = torch.optim.SGD(self._model.parameters(), lr=LEARNING_RATE)
        for batches in steps:
            self._states.clear()
            for batch in batches:
                with self._autocast:
                    loss = self._model(input_ids=batch, labels=batch).loss
                self.losses.append(loss.item())
                (loss / len(batches)).backward()
            optimizer.step()
            optimizer.zero_grad()

    def validate(self, *batches: Tensor) -> None:
        """Run the model in evaluation mode."""
        self._states.clear()
        self._model.eval()
        with torch.no_grad(), self._autocast:
            for batch in batches:
                self._model(input_ids=batch)
        self._model.train()

    def check(self, reading: Reading) -> None:
        """Compare a reading with the texts of the last step or validation."""
        expected: dict[str, Any] = {}
        for site, states in self._states.items():
            texts = [reference.unit(text.double().numpy()) for text in states]
            twin = reference.entropies(np.concatenate(texts))
            expected |= {f"{name}/{site}": twin[name] for name in ("entropy", "matrix_entropy", "effective_rank", "anisotropy")}
            expected[f"information_gain/{site}"] = np.mean([reference.gains(text).sum() for text in texts])
            expected[f"tokens/{site}"] = sum(map(len, texts))
        assert {name: reading[name] for name in expected} == pytest.approx(expected, rel=1e-6)
