"""The numbers of a training step that do not come from the probe: its loss, the norm of its gradient, and its texts."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from geomprobe.core.batches import batch_hash, token_entropy
from geomprobe.integrations.ranks import gathered

__all__ = ["StepNumbers"]

_MOST = 1024
"""Number of latest batches that are recognised if they are repeated."""


class StepNumbers:
    """Collects the numbers of one optimizer step at a time, and remembers the batches of earlier steps.

    Attributes:
        seen: hashes of the latest batches.
        gradient_norm: the norm of the gradient of this step before clipping, if it is known.
        scale: what the sum of the losses is multiplied by.
    """

    def __init__(self) -> None:
        self.seen: list[int] = []
        self.begin()

    def begin(self) -> None:
        """Begin a step."""
        self._losses: list[Tensor | None] = []
        self._texts: list[tuple[Tensor, Tensor | None]] = []
        self.gradient_norm: Any = None
        self.scale = 1.0

    def add(self, loss: Any, inputs: Any) -> None:
        """Add a micro-batch: its share of the loss of the step, and what the model was called with. The device is not waited
        for. If there is no loss, or there are no token ids, these numbers of the step are not known."""
        self._losses.append(loss.detach().reshape(()) if isinstance(loss, Tensor) and loss.numel() == 1 else None)
        ids = inputs.get("input_ids") if isinstance(inputs, Mapping) else None
        if isinstance(ids, Tensor) and ids.dim() == 2 and not ids.is_floating_point():
            mask = inputs.get("attention_mask")
            self._texts.append((ids, mask if isinstance(mask, Tensor) and mask.shape == ids.shape else None))

    def end(self) -> dict[str, float]:
        """End the step, and return its numbers by the names of signals, as far as all processes know them. This is a collective
        operation, and waits for the device.

        ``loss``, ``gradient_norm`` and ``token_entropy`` are means over processes. ``repeated_batch`` is 1 if the processes had
        the same texts together at a step before that was read, else 0.
        """
        own = gathered(self._own())
        numbers = {name: sum(one[name] for one in own) / len(own) for name in own[0] if all(name in one for one in own)}
        if numbers.pop("texts", None) is not None:
            batch = sum(one["texts"] for one in own) % (1 << 62)
            numbers["repeated_batch"] = float(batch in self.seen)
            self.seen = [*self.seen, batch][-_MOST:]
        return numbers

    def _own(self) -> dict[str, Any]:
        """The numbers of this process that are known. ``texts`` is a hash of them."""
        losses, texts, norm, scale = self._losses, self._texts, self.gradient_norm, self.scale
        self.begin()
        own: dict[str, Any] = {}
        if losses and None not in losses:
            own["loss"] = float(torch.stack([loss for loss in losses if loss is not None]).sum()) * scale
        if norm is not None:
            own["gradient_norm"] = float(norm)
        if texts and len(texts) == len(losses):
            masks = [torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool() for ids, mask in texts]
            entropy = token_entropy(
                torch.cat([ids.flatten() for ids, _ in texts]), torch.cat([mask.flatten() for mask in masks])
            )
            own["texts"] = int(sum(batch_hash(ids, mask) for (ids, _), mask in zip(texts, masks, strict=True)))
            own |= {"token_entropy": float(entropy)} if math.isfinite(entropy) else {}
        return own
