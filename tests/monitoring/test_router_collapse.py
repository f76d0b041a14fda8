"""The default rule of routers, on a mixture of experts that learns to spell."""

import pytest
import torch
from torch import nn

from geomprobe import Alarm, Monitor, Probe, RouterProfile
from geomprobe.monitoring.rules import DEFAULT_RULES
from tests.tiny_models import prose, tiny

pytestmark = pytest.mark.slow  # it trains

CHANGE, STEPS, READ = 40, 64, 2
BALANCE = 0.5


def alarms_of(after: float) -> tuple[list[Alarm], list[float]]:
    """Train with a balancing loss, whose coefficient changes to ``after`` in the middle. Return the alarms of the default rule,
    and the largest share of an expert at each reading."""
    rule = next(rule for rule in DEFAULT_RULES if rule.signal == "router_largest_share")
    model = tiny("mixtral", layers=2, vocabulary=128, num_local_experts=16, router_aux_loss_coef=BALANCE).train()
    optimizer, draw = torch.optim.AdamW(model.parameters(), lr=3e-3), torch.Generator().manual_seed(0)
    text = torch.tensor([min(ord(character), 127) for character in prose(200_000)])
    monitor, rings, shares = Monitor([rule]), [], []
    with Probe(model, [RouterProfile()], sites=[0, 1], when=lambda step: step % READ == 0, on_error="raise") as probe:
        for step in range(STEPS):
            model.router_aux_loss_coef = BALANCE if step < CHANGE else after
            starts = torch.randint(0, len(text) - 32, (8, 1), generator=draw)
            ids = text[starts + torch.arange(32)]
            model(ids, labels=ids, output_router_logits=True).loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1)
            optimizer.step()
            optimizer.zero_grad()
            if step % READ == 0:
                reading = probe.read(reset=True)
                shares.append(max(reading["router_largest_share"].values()))
                rings += monitor.update(step, reading)
    return rings, shares


def test_a_mixture_whose_balancing_loss_is_reversed_rings_and_a_balanced_one_does_not() -> None:
    balanced, steady = alarms_of(BALANCE)
    assert balanced == []
    rings, shares = alarms_of(-0.2)
    assert [alarm.name for alarm in rings][:1] == ["router_largest_share_up"]
    assert rings[0].step > CHANGE
    assert max(shares) > 2 * max(steady)
