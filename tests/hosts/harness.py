"""What the tests of host programs share.

A host trains a tiny model twice from the same seed, without and with a probe. The second time a spy writes down the texts of
every loss forward and the weights that it ran with, independently of the probe: it is a hook of its own on the decoder, and it
reads padding and packing from the arguments by itself. Afterwards each text is run alone, without padding, through the same
weights under a fresh probe, and every reading of a step must be that.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, TrainerCallback, set_seed

from geomprobe import Probe, Reading, every
from geomprobe.integrations import ProbeCallback
from tests.reference import LEFT_OUT
from tests.tiny_models import hooks, snapshot, tiny

__all__ = [
    "ALPHABET",
    "EOS",
    "PAD",
    "STEPS",
    "LossForwards",
    "alone",
    "assert_same",
    "assert_steps_are_the_loss_texts",
    "compared_with_bare",
    "letters",
    "model",
    "readings",
    "settings",
    "tokenizer",
]

PAD, EOS = 0, 1
ALPHABET = "abcdefghijklmnop "
"""So few tokens that a random model ends some of its texts early."""

STEPS = 6
"""Optimizer steps of every training."""


def tokenizer() -> PreTrainedTokenizerFast:
    """One token for each letter, and the padding token 0 and the end token 1."""
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<eos>", *ALPHABET])}
    letters = Tokenizer(BPE(vocabulary, []))
    letters.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=letters, pad_token="<pad>", eos_token="<eos>")


def letters(count: int, shortest: int, longest: int, seed: int = 0) -> list[str]:
    """Random texts of different lengths."""
    draw = random.Random(seed)
    return ["".join(draw.choices(ALPHABET.strip(), k=draw.randint(shortest, longest))) for _ in range(count)]


def model(**options: Any) -> Any:
    """A Llama without dropout for the tokens of :func:`tokenizer`."""
    tokens = {"pad_token_id": PAD, "eos_token_id": EOS, "bos_token_id": None}
    return tiny("llama", layers=2, vocabulary=len(ALPHABET) + 2, **(tokens | options))


def settings(directory: Path, **options: Any) -> dict[str, Any]:
    """The arguments that all trainers take: six steps on the CPU in float32, the loss logged at each."""
    return {
        "output_dir": str(directory / "trained"),
        "max_steps": STEPS,
        "per_device_train_batch_size": 3,
        "per_device_eval_batch_size": 3,
        "logging_steps": 1,
        "learning_rate": 1e-2,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    } | options


# -- what the host did -------------------------------------------------------------------------------------------------------


@dataclass
class _Step:
    """The texts of the loss forwards of one optimizer step, and the weights before it."""

    texts: list[Tensor] = field(default_factory=list)
    weights: dict[str, Tensor] = field(default_factory=dict)
    padded: bool = False


class LossForwards(TrainerCallback):  # type: ignore[misc]
    """Writes down every forward of the decoder that runs in training mode with gradients on, and counts the others."""

    def __init__(self) -> None:
        self.steps: list[_Step] = []
        self.without_gradients = 0
        self._hook: Any = None

    @property
    def padded(self) -> int:
        """The number of steps with a batch that was padded."""
        return sum(step.padded for step in self.steps)

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        decoder = next(module for module in model.modules() if type(module).__name__ == "LlamaModel")
        self._hook = decoder.register_forward_pre_hook(self._before, with_kwargs=True)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.steps.append(_Step())

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.steps[-1].weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._hook.remove()

    def _before(self, decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not torch.is_grad_enabled():
            self.without_gradients += 1
        elif decoder.training:
            ids = args[0] if args else kwargs["input_ids"]
            texts = _texts(ids, kwargs.get("attention_mask"), kwargs.get("position_ids"))
            self.steps[-1].texts += texts
            self.steps[-1].padded |= sum(map(len, texts)) < ids.numel()


def _texts(ids: Tensor, mask: Tensor | None, positions: Tensor | None) -> list[Tensor]:
    """The texts of a batch: without padding, and cut where positions start again."""
    texts: list[Tensor] = []
    for row in range(len(ids)):
        kept = torch.ones_like(ids[row], dtype=torch.bool) if mask is None else mask[row].bool()
        starts = [0] if positions is None else (positions[row][kept] == 0).nonzero().flatten().tolist()
        texts += torch.tensor_split(ids[row][kept].clone(), starts[1:])
    return texts


def readings(callback: ProbeCallback, mode: str = "train") -> list[Reading]:
    """The readings of one mode, in order."""
    return [reading for _, reading in callback.history if reading.mode == mode]


# -- comparisons -------------------------------------------------------------------------------------------------------------


def alone(model: Any, texts: list[Tensor]) -> Reading:
    """The reading of texts that run one by one, without padding, under a fresh probe."""
    training = model.training
    model.eval()
    with torch.no_grad(), Probe(model, on_error="raise") as probe:
        for text in texts:
            model(input_ids=text.unsqueeze(0), use_cache=False)
    model.train(training)
    return probe.read("eval")


_ROUNDED = ("rankme", "alpha_req", "alpha_req_r2")
"""Metrics of the smallest singular values, which in float32 are partly rounding."""


def assert_same(reading: Reading, expected: Reading, *, rel: float = 1e-4) -> None:
    """Two readings have the same numbers: counts exactly, and others to ``rel``, or ten times that for :data:`_ROUNDED`."""
    assert set(reading) == set(expected)
    far = {}
    for name, value in expected.items():
        metric = name.split("/")[0]
        allowed = 0.0 if metric in ("tokens", "texts") else 10 * rel if metric in _ROUNDED else rel
        near = 1e-3 if metric in LEFT_OUT else 0.0 if not allowed else 1e-7
        if reading[name] != pytest.approx(value, rel=allowed, abs=near):
            far[name] = (reading[name], value)
    assert not far, far


def assert_steps_are_the_loss_texts(trained: Any, seen: LossForwards, readings: list[Reading], *, notes: int = 0) -> None:
    """Every reading is that of the texts of its step, alone, under the weights of that step, and has so many notes."""
    assert len(readings) == len(seen.steps) == STEPS
    for step, reading in zip(seen.steps, readings, strict=True):
        trained.model.load_state_dict(step.weights)
        assert_same(reading, alone(trained.model, step.texts))
        assert len(reading.notes) == notes, reading.notes


def compared_with_bare(make: Callable[[list[TrainerCallback]], Any], **options: Any) -> tuple[Any, LossForwards, ProbeCallback]:
    """Train without and with a probe; both compute the same, bit for bit, and leave the same on the model.

    Args:
        make: returns a new trainer with these callbacks, after setting the seed.
        options: arguments of :class:`ProbeCallback`.
    """
    set_seed(0)  # adapters are drawn when the trainer is made
    bare = make([])
    bare.train()
    seen, callback = LossForwards(), ProbeCallback(**({"when": every(1), "on_error": "raise"} | options))
    set_seed(0)
    probed = make([seen, callback])
    probed.train()
    assert _log(probed) == _log(bare)
    for name, weight in bare.model.state_dict().items():
        assert torch.equal(probed.model.state_dict()[name], weight), name
    assert hooks(probed.model) == hooks(bare.model)
    assert _left_on(probed.model) == _left_on(bare.model)
    return probed, seen, callback


def _log(trained: Any) -> list[dict[str, Any]]:
    """What the host logged, without what is measured in seconds."""
    timed = ("runtime", "per_second", "time", "flos")
    return [
        {name: repr(value) for name, value in entry.items() if not name.endswith(timed)} for entry in trained.state.log_history
    ]


def _left_on(model: nn.Module) -> dict[str, Any]:
    kept = snapshot(model)
    return {key: value for key, value in kept.items() if key.endswith(("attributes", "config"))}
