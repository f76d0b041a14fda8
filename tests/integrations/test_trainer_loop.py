"""What is found of a step in the frames of a training loop: that of the callback's own Trainer, or nothing."""

from types import SimpleNamespace
from typing import Any

from geomprobe.integrations.trainer_loop import MicroBatch, micro_batch


class Loop:
    """A loop with the names of Trainer's, which calls a callback at the end of a micro-batch."""

    def __init__(self) -> None:
        self.state = SimpleNamespace(global_step=1)

    def run(self, callback: Any) -> Any:
        tr_loss_step, inputs, grad_norm = 0.5, {"input_ids": [1]}, 2.0
        found = callback(self.state)
        return found, (tr_loss_step, inputs, grad_norm)

    def before_the_first(self, callback: Any) -> Any:
        found = callback(self.state)
        tr_loss_step = 0.5
        return found, tr_loss_step

    def within(self, callback: Any) -> Any:
        tr_loss_step = 0.5
        return callback(), tr_loss_step


class OwnLoop(Loop):
    """A loop of one's own, as trainers of RL have: none of the names is in it."""

    def run(self, callback: Any) -> Any:
        return callback(self.state)


def test_the_loop_of_the_trainer_is_read() -> None:
    found, expected = Loop().run(micro_batch)
    assert found == expected


def test_a_loop_without_these_names_tells_nothing() -> None:
    assert OwnLoop().run(micro_batch) == MicroBatch()
    assert Loop().before_the_first(micro_batch)[0] == MicroBatch()


def test_the_loop_of_another_trainer_is_not_read() -> None:
    """A training that runs inside another one, such as in a callback of it, is told nothing of the outer one."""
    inner = OwnLoop()
    assert Loop().within(lambda: inner.run(micro_batch))[0] == MicroBatch()
    assert Loop().within(lambda: Loop().run(micro_batch))[0] == Loop().run(micro_batch)
