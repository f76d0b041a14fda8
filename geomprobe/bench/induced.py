"""Small trainings with a fault or a healthy event, which are measured as they run. ``geomprobe bench alarms`` uses them.

Each training is a byte-level GPT-NeoX or Llama of 0.2 million parameters that reads Python's help pages for 180 steps. From a
step between 60 and 99 on, which its seed determines, one thing is different. All steps before are those of the quiet training
of the same architecture and seed, bit for bit.
"""

import ast
import random
import sysconfig
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from geomprobe.capture.decoder import find_decoder
from geomprobe.core.batches import batch_hash, remember, token_entropy
from geomprobe.metrics.attention import AttentionProfile
from geomprobe.metrics.entropy import RepresentationEntropy
from geomprobe.metrics.residual_growth import ResidualGrowth
from geomprobe.models.toy import byte_blocks
from geomprobe.probe import Probe
from geomprobe.reading import Reading

__all__ = ["ARCHITECTURES", "BEGIN", "EVENTS", "FAULTS", "GRADUAL", "STEPS", "TRIED", "Plan", "Row", "train"]

ARCHITECTURES = ("neox", "llama")
STEPS = 180
_EVERY = 2
_WARMUP = 20
BEGIN = 2 * _WARMUP
"""The step after which readings begin, because it is normal that these numbers move most early in a training."""
_RATE = 3e-3
_TEXTS, _LENGTH = 16, 64


@dataclass(frozen=True)
class Plan:
    """One training: the architecture, the seed of its weights and texts, and what happens in it (``"quiet"`` if nothing)."""

    architecture: str
    seed: int
    what: str = "quiet"

    @property
    def onset(self) -> int:
        """The first step at which it happens."""
        return random.Random(self.seed).randrange(60, 100)


@dataclass(frozen=True)
class Row:
    """What was read at one step: of the batch (``"train"``), or of the fixed texts after the step (``"fixed"``).

    Attributes:
        step: the optimizer step, from 1 on.
        mode: what was read.
        numbers: the loss in nats; for a batch also the norm of the gradient before clipping, whether the batch was seen before,
            and the entropy of its tokens; for the fixed texts also the kurtosis, with which alarms are compared.
        reading: the reading.
    """

    step: int
    mode: str
    numbers: dict[str, float]
    reading: Reading


@dataclass
class _Training:
    """A training under way, which a fault or an event changes.

    Attributes:
        rate: factor of the learning rate.
        texts: number of texts in a batch.
        length: number of bytes in a text.
        source: the texts that batches are drawn from.
        change: a function that returns the token ids to use in place of those of a batch.
        labels: a function that returns the labels of token ids.
        handles: the handles of the hooks on the model.
    """

    model: Any
    seed: int
    source: Tensor
    rate: float = 1.0
    texts: int = _TEXTS
    length: int = _LENGTH
    change: Callable[[Tensor], Tensor] = lambda ids: ids
    labels: Callable[[Tensor], Tensor] = lambda ids: ids
    handles: list[RemovableHandle] = field(default_factory=list)
    optimizer: torch.optim.Optimizer = field(init=False)
    generator: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.restart()
        self.generator = torch.Generator().manual_seed(self.seed)

    def restart(self) -> None:
        """Replace the optimizer with a new one, which has seen no gradient."""
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=_RATE, betas=(0.9, 0.95), weight_decay=0.1)

    def batch(self) -> Tensor:
        """The next batch. Every step draws equally many random numbers, so that all trainings of a seed get the same texts."""
        chosen = torch.randint(len(self.source), (4 * _TEXTS,), generator=self.generator)
        return self.change(self.source[chosen[: self.texts], : self.length])

    def step(self, step: int, ids: Tensor) -> tuple[float, float]:
        """Take one step, and return the loss and the norm of the gradient before clipping."""
        for group in self.optimizer.param_groups:
            group["lr"] = _RATE * self.rate * min(1.0, step / _WARMUP)
        self.optimizer.zero_grad()
        loss = self.model(input_ids=ids, labels=self.labels(ids)).loss
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return loss.item(), norm.item()


Change = Callable[[_Training, int], None]
"""A function that is called before each step from the onset on, with the training and its number of steps since the onset."""


def _growing_queries_and_keys(growth: float) -> Change:
    """Multiply the weights of queries and keys by a factor at each step."""

    def change(training: _Training, age: int) -> None:
        with torch.no_grad():
            for name, weight in training.model.named_parameters():
                if name.endswith("query_key_value.weight"):
                    heads = training.model.config.num_attention_heads
                    weight.view(heads, 3, -1, weight.shape[1])[:, :2] *= growth
                elif name.endswith(("q_proj.weight", "k_proj.weight")):
                    weight *= growth

    return change


def _shrinking_range(shrinkage: float) -> Change:
    """Clip the hidden states after each layer to a range that is ±2 at first and becomes smaller at each step."""

    def change(training: _Training, age: int) -> None:
        bound = 2 * shrinkage**age
        for handle in training.handles:
            handle.remove()
        training.handles = [
            layer.register_forward_hook(lambda layer, args, output: output.clamp(-bound, bound))
            for layer in find_decoder(training.model).layers
        ]

    return change


def _rate(factor: float, growth: float = 1.0) -> Change:
    def change(training: _Training, age: int) -> None:
        training.rate = factor * growth**age

    return change


def _texts(changed: Callable[[Tensor, torch.Generator], Tensor], share: float = 1.0) -> Change:
    """Change a share of the texts of each batch."""

    def change(training: _Training, age: int) -> None:
        generator = torch.Generator().manual_seed(training.seed + age)

        def of(ids: Tensor) -> Tensor:
            many = round(share * len(ids))
            return torch.cat([changed(ids[:many], generator), ids[many:]])

        training.change = of

    return change


def _constant(ids: Tensor, generator: torch.Generator) -> Tensor:
    return torch.full_like(ids, ord(" "))


def _shuffled(ids: Tensor, generator: torch.Generator) -> Tensor:
    return torch.stack([text[torch.randperm(len(text), generator=generator)] for text in ids])


def _late_labels(training: _Training, age: int) -> None:
    """Let the model predict the token after the next one, as when labels are shifted by the data and by the model."""
    training.labels = lambda ids: torch.cat([ids[:, 1:], torch.full_like(ids[:, :1], -100)], 1)


def _stuck(training: _Training, age: int) -> None:
    """Use the first batch from the onset on at each step."""
    if age == 0:
        same = training.batch()
        training.change = lambda ids: same


def _restart(training: _Training, age: int) -> None:
    if age == 0:
        training.restart()


def _more_texts(training: _Training, age: int) -> None:
    training.texts = 2 * _TEXTS


def _shorter_texts(training: _Training, age: int) -> None:
    training.texts, training.length = 2 * _TEXTS, _LENGTH // 2


def _other_texts(training: _Training, age: int) -> None:
    if age == 0:
        training.source = _docstrings()


def _docstrings() -> Tensor:
    """The docstrings of Python's standard library, in blocks: texts of another kind than the help pages."""
    found = []
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        nodes = ast.walk(ast.parse(path.read_bytes()))
        kinds = ast.Module | ast.ClassDef | ast.FunctionDef
        found += [text for node in nodes if isinstance(node, kinds) and (text := ast.get_docstring(node))]
    data = torch.frombuffer(bytearray("\n\n".join(found).encode()), dtype=torch.uint8).long()
    return data[: len(data) // _LENGTH * _LENGTH].view(-1, _LENGTH)


GRADUAL: dict[str, Change] = {
    "queries and keys +6% a step": _growing_queries_and_keys(1.06),
    "queries and keys +2% a step": _growing_queries_and_keys(1.02),
    "range −6% a step": _shrinking_range(0.94),
    "range −2% a step": _shrinking_range(0.98),
    "learning rate +6% a step": _rate(1.0, 1.06),
    "learning rate +2% a step": _rate(1.0, 1.02),
}
"""Faults that grow."""

FAULTS: dict[str, Change] = GRADUAL | {
    "learning rate ×30": _rate(30.0),
    "learning rate ×5": _rate(5.0),
    "constant texts": _texts(_constant),
    "shuffled texts": _texts(_shuffled),
    "stuck batch": _stuck,
}

TRIED: dict[str, Change] = {
    "a quarter of texts shuffled": _texts(_shuffled, 0.25),
    "labels one token late": _late_labels,
}
"""Faults that are counted apart, because the rules were not made for them."""

EVENTS: dict[str, Change] = {
    "learning rate ÷10": _rate(0.1),
    "new optimizer": _restart,
    "twice as many texts": _more_texts,
    "texts half as long": _shorter_texts,
    "other texts": _other_texts,
}


def train(plan: Plan) -> list[Row]:
    """Train as planned, and return what was read."""
    training, held_out = _begin(plan)
    change = (FAULTS | TRIED | EVENTS).get(plan.what)
    read: list[Row] = []
    seen = torch.empty(0, dtype=torch.int64)
    due = False
    metrics = [RepresentationEntropy(), AttentionProfile(logits=True), ResidualGrowth()]
    with Probe(training.model, metrics, when=lambda _: due, on_error="raise") as probe:
        for step in range(1, STEPS + 1):
            if change is not None and step >= plan.onset:
                change(training, step - plan.onset)
            ids = training.batch()
            due = step > BEGIN and step % _EVERY == 0
            loss, norm = training.step(step, ids)
            if not due:
                continue
            seen, repeated = remember(seen, batch_hash(ids))
            training.model.eval()
            with torch.no_grad():
                output = training.model(input_ids=held_out, labels=held_out, output_hidden_states=True)
            training.model.train()
            numbers = {
                "loss": loss,
                "gradient_norm": norm,
                "repeated_batch": float(repeated),
                "token_entropy": float(token_entropy(ids)),
            }
            of_fixed = {"loss": output.loss.item()} | _kurtosis(output.hidden_states)
            read += [
                Row(step, "train", numbers, _by_head(probe.read("train", reset=True))),
                Row(step, "fixed", of_fixed, _by_head(probe.read("eval", reset=True))),
            ]
    return read


def _by_head(reading: Reading) -> Reading:
    """The reading without the curves that no rule looks at."""
    reading.curves = {name: curve for name, curve in reading.curves.items() if "_by_head/" in name}
    return reading


def _kurtosis(hidden_states: Sequence[Tensor]) -> dict[str, float]:
    """The kurtosis of He et al. (2024) of each layer: the mean over dimensions of s⁴, divided by the squared mean of s², where
    s is the root mean square of a dimension over tokens."""
    squares = [hidden.flatten(0, 1).square().mean(0) for hidden in hidden_states[1:]]
    return {f"kurtosis/layer_{i:02}": (s.square().mean() / s.mean() ** 2).item() for i, s in enumerate(squares)}


def _begin(plan: Plan) -> tuple[_Training, Tensor]:
    """The training at its first step, and the fixed texts."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(plan.seed)
    size = {
        "vocab_size": 256,
        "hidden_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "max_position_embeddings": _LENGTH,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    model: Any
    if plan.architecture == "neox":
        model = GPTNeoXForCausalLM(GPTNeoXConfig(**size, intermediate_size=256))
    else:
        model = LlamaForCausalLM(LlamaConfig(**size, intermediate_size=176))
    source, held_out = byte_blocks(_LENGTH)
    return _Training(model.train(), plan.seed, source), held_out[:_TEXTS]
