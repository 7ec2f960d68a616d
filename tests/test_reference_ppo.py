"""The specification is checked by hand, stands alone, and learns."""

from __future__ import annotations

import ast
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests import reference_ppo
from tests.reference_ppo import Net, Settings

PATH = Path(reference_ppo.__file__)
NAN = math.nan


def test_it_needs_neither_ray_nor_the_package() -> None:
    found = set()
    for node in ast.walk(ast.parse(PATH.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name.split(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").split(".")[0])
    assert found - sys.stdlib_module_names == {"gymnasium", "numpy", "torch"}


# gamma = lambda = 1/2. Residuals: 1 + 2/2 - 1 = 1; 2 + 3/2 - 2 = 1.5; 3 + 4/2 - 3 = 2.
# A_2 = 2; A_1 = 1.5 + 2/4 = 2; A_0 = 1 + 2/4 = 1.5.
# Terminated: the last residual is 3 - 3 = 0; A_1 = 1.5; A_0 = 1 + 1.5/4 = 1.375.
@pytest.mark.parametrize(
    ("terminated", "expected"), [(False, [1.5, 2.0, 2.0]), (True, [1.375, 1.5, 0.0])]
)
def test_advantages_by_hand(terminated, expected):
    rewards, values = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 2.0, 3.0, 4.0])
    found = reference_ppo.gae(rewards, values, terminated, 0.5, 0.5)
    assert found.tolist() == expected
    assert values.tolist() == [1.0, 2.0, 3.0, 4.0]


# Mean 2, population variance (1 + 0 + 1) / 3.
def test_standardized_by_hand():
    found = reference_ppo.standardized(torch.tensor([1.0, 2.0, 3.0]))
    torch.testing.assert_close(found, torch.tensor([-1.0, 0.0, 1.0]) * math.sqrt(3 / 2))
    assert reference_ppo.standardized(torch.tensor([4.0, 4.0])).tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("settings", "signals", "expected"),
    [
        ({}, [1, 3], [1 / 4, 3 / 4]),
        ({}, [-1, 0, 3], [0, 1 / 5, 4 / 5]),  # 0, 1, 4
        ({}, [0, 0], [1 / 2, 1 / 2]),
        ({}, [NAN, NAN], [1 / 2, 1 / 2]),
        ({}, [1, NAN, 3], [1 / 6, 2 / 6, 3 / 6]),
        ({"offset": "min"}, [1, 2, 4], [0, 1 / 4, 3 / 4]),  # 0, 1, 3
        ({"offset": 1.0}, [1, 2, 4], [2 / 10, 3 / 10, 5 / 10]),
        ({"direction": "low"}, [1, 2, 4], [3 / 5, 2 / 5, 0]),  # -1, -2, -4 -> 3, 2, 0
    ],
)
def test_shares_by_hand(settings, signals, expected):
    signals = [float(signal) for signal in signals]
    before = list(signals)
    found = reference_ppo.shares(signals, Settings(**settings))
    np.testing.assert_allclose(found, expected, rtol=1e-15)
    np.testing.assert_array_equal(signals, before)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [1 / 4 + 1 / 2, 3 / 4 + 1 / 2]),
        ({"strategy": "loss_weighted", "min_weight": 0.1}, [1 / 4 + 0.1, 3 / 4 + 0.1]),
        ({"strategy": "average"}, [1 / 2, 1 / 2]),
        ({"strategy": "sum"}, [1, 1]),
    ],
)
def test_weights_by_hand(settings, expected):
    found = reference_ppo.weights([1.0, 3.0], Settings(**settings))
    np.testing.assert_allclose(found, expected, rtol=1e-15)


# Both actions have probability 1/2 and all values are 0. Ratios 2 and 1/2; clip 0.25.
# Surrogates min(1 x 2, 1 x 1.25) = 1.25 and min(-2 x 0.5, -2 x 0.75) = -1.5; mean -0.125.
# Squared errors 1 and 9, clipped at 4: mean 2.5. Entropy ln 2.
def test_the_loss_by_hand():
    net = Net(1, 2, 2).double()
    for parameter in net.parameters():
        parameter.data.zero_()
    batch = {
        "obs": torch.ones(2, 1),
        "actions": torch.tensor([0, 1]),
        "logp": torch.tensor([1 / 4, 1.0]).log(),
        "advantages": torch.tensor([1.0, -2.0]),
        "targets": torch.tensor([1.0, 3.0]),
    }
    batch = {name: c.double() if c.is_floating_point() else c for name, c in batch.items()}
    settings = Settings(clip=0.25, value_clip=4.0, value_coeff=0.5, entropy_coeff=0.1)
    found = {
        name: loss.item() for name, loss in reference_ppo.ppo_loss(net, batch, settings).items()
    }
    assert found["policy"] == pytest.approx(0.125, abs=1e-7)
    assert found["value"] == 2.5
    assert found["total"] == pytest.approx(0.125 + 0.5 * 2.5 - 0.1 * math.log(2), abs=1e-7)


def test_minibatches_use_every_row_once_per_epoch():
    settings = Settings(num_epochs=2, num_minibatches=3)
    steps = reference_ppo.minibatches([7, 4], settings, np.random.default_rng(0))
    assert len(steps) == 2 * 3
    for epoch in (steps[:3], steps[3:]):
        for worker, n in enumerate([7, 4]):
            assert sorted(np.concatenate([rows[worker] for rows in epoch])) == list(range(n))


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("strategy", ["reward_weighted", "loss_weighted", "average", "sum"])
def test_every_strategy_trains(strategy, own, monkeypatch):
    """The parameters move; with own ones they differ, else there is one network only."""
    before, after = [], []
    update = reference_ppo.update

    def watched(nets, *args):
        before.append([torch.nn.utils.parameters_to_vector(net.parameters()) for net in nets])
        update(nets, *args)
        after.append([torch.nn.utils.parameters_to_vector(net.parameters()) for net in nets])

    monkeypatch.setattr(reference_ppo, "update", watched)
    settings = Settings(
        strategy=strategy,
        per_worker_parameters=own,
        num_workers=2,
        num_rounds=2,
        num_epochs=1,
        hidden=4,
    )
    assert 9 <= reference_ppo.train(settings) <= 500
    assert len(after) == 2
    for old, new in zip(before, after, strict=True):
        assert all(not torch.equal(a, b) for a, b in zip(old, new, strict=True))
        assert torch.equal(new[0], new[1]) != own


@pytest.mark.slow
def test_it_learns_cartpole() -> None:
    result = subprocess.run([sys.executable, PATH], capture_output=True, text=True, check=True)
    assert float(result.stdout.split()[-1]) >= 400, result.stdout
