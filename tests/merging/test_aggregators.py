"""TorchJD's aggregators as a strategy: [N, P] -> [P], with weights where there are any."""

from __future__ import annotations

import builtins
import math

import pytest
import torch

from rllib_weighted.merging import TorchJD, resolve_strategy, strategy_problems
from rllib_weighted.merging.aggregators import aggregators, drawing_from


def matrix(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def test_the_mean():
    merged, weights = TorchJD("Mean").aggregate(matrix([1.0, 2.0], [3.0, 6.0]))
    assert merged.tolist() == [2.0, 4.0]
    assert weights.tolist() == [0.5, 0.5]


def test_upgrad_lets_no_worker_lose():
    # (1, 0) and (-1, 1) conflict: their mean (0, 1/2) is no descent for the first. UPGrad takes
    # both into the cone: (1, 0) + its product with the other is < 0 -> (1/2, 1/2);
    # (-1, 1) -> (0, 1). Mean: (1/4, 3/4).
    gradients = matrix([1.0, 0.0], [-1.0, 1.0])
    merged, weights = TorchJD().aggregate(gradients)
    assert merged.tolist() == pytest.approx([0.25, 0.75], abs=1e-3)
    assert (weights @ gradients).tolist() == pytest.approx(merged.tolist())
    assert float((gradients @ merged).min()) >= -1e-6


def test_a_trimmed_mean_has_no_weights():
    merged, weights = TorchJD("TrimmedMean", {"trim_number": 1}).aggregate(
        matrix([0.0], [3.0], [100.0])
    )
    assert merged.tolist() == [3.0]
    assert all(map(math.isnan, weights.tolist()))


def test_what_draws_is_drawn_from_the_seed():
    gradients = torch.randn(4, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    before = torch.get_rng_state()
    found = []
    for seed in (1, 1, 2):
        with drawing_from(seed):
            found.append(TorchJD("GradDrop").aggregate(gradients)[0])
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    assert torch.equal(torch.get_rng_state(), before)


def test_the_options():
    assert resolve_strategy("torchjd") == TorchJD("UPGrad")
    options = {"aggregator": "Krum", "arguments": {"n_byzantine": 1}}
    assert resolve_strategy("torchjd", options) == TorchJD("Krum", {"n_byzantine": 1})
    assert {"UPGrad", "Mean", "MGDA", "PCGrad", "Krum", "TrimmedMean"} <= aggregators().keys()
    assert not {"Aggregator", "Weighting", "UPGradWeighting"} & aggregators().keys()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"aggregator": "UpGrad"}, "`aggregator` should be among .* 'UpGrad': .* mean 'UPGrad'"),
        ({"aggregator": "Krum"}, r"`arguments` of Krum should be .*\(n_byzantine: int, .*missing"),
        ({"aggregator": "Mean", "arguments": {"x": 1}}, r"`arguments` of Mean .* found {'x': 1}"),
        ({"arguments": 3}, "`arguments` should be a valid dict"),
        ({"aggregator": 3}, "`aggregator` should be a valid string"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        resolve_strategy("torchjd", options)


def test_without_torchjd_the_extra_is_named(monkeypatch):
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.startswith("torchjd"):
            raise ModuleNotFoundError(f"No module named {name!r}")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    (problem,) = strategy_problems("torchjd", {})
    assert "pip install 'rllib_weighted[torchjd]'" in problem
