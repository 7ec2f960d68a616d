"""PPO's loss of every row and its derivatives: by hand, and against autograd."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.distribution.torch.torch_distribution import TorchCategorical, TorchDiagGaussian
from ray.rllib.evaluation.postprocessing import Postprocessing
from torch import Tensor

from rllib_weighted.core.modules import Networks
from rllib_weighted.learning.closed_form.loss import PPOLoss, RowColumns
from rllib_weighted.learning.closed_form.steps import segment_mean_matrix
from rllib_weighted.learning.losses import PART_NAMES, WorkerLosses, ppo_worker_losses

CATEGORICAL = Networks((), (), (), distribution="categorical")
GAUSSIAN = Networks((), (), (), distribution="gaussian")
CLASSES = {"categorical": TorchCategorical, "gaussian": TorchDiagGaussian}
WIDTHS = {"categorical": 3, "gaussian": 4}
LN3 = math.log(3)


def settings(**kwargs: Any) -> Any:
    defaults: dict[str, Any] = {
        "clip_param": 0.2,
        "vf_clip_param": 4.0,
        "vf_loss_coeff": 0.5,
        "use_critic": True,
        "use_kl_loss": False,
    }
    return SimpleNamespace(**defaults | kwargs)


def columns_of(ratios: list[float], advantages: list[float], errors: list[float]) -> Any:
    """Rows of the policy p = (1/4, 3/4) that have taken action 1; their value is 0."""
    rows = len(ratios)
    logp = math.log(3 / 4) - torch.tensor(ratios, dtype=torch.float64).log()
    return {
        Columns.OBS: torch.zeros(rows, 1, dtype=torch.float64),
        Columns.ACTIONS: torch.ones(rows, dtype=torch.int64),
        Columns.ACTION_LOGP: logp,
        Columns.ACTION_DIST_INPUTS: torch.zeros(rows, 2, dtype=torch.float64),
        Postprocessing.ADVANTAGES: torch.tensor(advantages, dtype=torch.float64),
        Postprocessing.VALUE_TARGETS: -torch.tensor(errors, dtype=torch.float64),
    }


def by_hand(config: Any, columns: Any, **coefficients: float) -> tuple[Tensor, Tensor, Tensor]:
    """Parts [5, rows], and derivatives by logits and values, all rows with factor 2."""
    loss = PPOLoss(
        config,
        CATEGORICAL,
        like=torch.zeros(1, dtype=torch.float64),
        **{"entropy_coeff": 0.0, "kl_coeff": 0.0, **coefficients},
    )
    rows = RowColumns.pack(columns, networks=CATEGORICAL, use_kl_loss=config.use_kl_loss)
    num_rows = len(columns[Columns.OBS])
    logits = torch.tensor([[0.0, LN3]] * num_rows, dtype=torch.float64)
    parts = loss.forward(rows, logits, torch.zeros(num_rows, dtype=torch.float64))
    return parts, *loss.backward(torch.full((num_rows,), 2.0, dtype=torch.float64))


# Ratio, advantage -> surrogate min(A r, A clip(r)), its derivative by log p: A r, or 0 if clipped.
@pytest.mark.parametrize(
    ("ratio", "advantage", "surrogate", "slope"),
    [
        (1.0, 3.0, 3.0, 3.0),
        (1.0, -3.0, -3.0, -3.0),
        (1.1, 1.0, 1.1, 1.1),
        (1.5, 1.0, 1.2, 0.0),
        (1.5, -1.0, -1.5, -1.5),
        (0.5, 1.0, 0.5, 0.5),
        (0.5, -1.0, -0.8, 0.0),
        (1.5, 0.0, 0.0, 0.0),
        (0.5, 0.0, 0.0, 0.0),
    ],
)
def test_the_surrogate_by_hand(ratio, advantage, surrogate, slope):
    parts, by_logits, by_values = by_hand(settings(), columns_of([ratio], [advantage], [0.0]))
    assert parts[0].tolist() == pytest.approx([-surrogate])
    # Times the factor 2, and d log p / dz = (-1/4, 1/4).
    assert by_logits.tolist() == [pytest.approx([slope / 2, -slope / 2])]
    assert by_values.tolist() == [0.0]


# Error e -> min(e^2, clip), and its derivative 2 e, or 0 beyond the clip.
@pytest.mark.parametrize(
    ("clip", "error", "clipped", "slope"),
    [
        (4.0, 1.0, 1.0, 2.0),
        (4.0, -1.5, 2.25, -3.0),
        (4.0, 3.0, 4.0, 0.0),
        (4.0, -3.0, 4.0, 0.0),
        (4.0, 2.0, 4.0, 4.0),  # On the edge, as in `torch.clamp`.
        (math.inf, 100.0, 1e4, 200.0),
        (None, 100.0, 1e4, 200.0),  # RLlib's default need not be kept: None clips nothing.
    ],
)
def test_the_value_loss_by_hand(clip, error, clipped, slope):
    config = settings(vf_clip_param=clip)
    parts, by_logits, by_values = by_hand(config, columns_of([1.0], [0.0], [error]))
    assert parts[1].tolist() == [clipped]
    assert parts[2].tolist() == [error**2]
    assert by_values.tolist() == [slope]  # Factor 2, coefficient 1/2.
    assert by_logits.tolist() == [[0.0, 0.0]]


# The same policy as in test_policies: dH/dz_1 = -3/16 ln 3, dKL/dz = p - q = (-1/4, 1/4).
def test_entropy_and_divergence_by_hand():
    columns = columns_of([1.0], [0.0], [0.0])
    _, by_logits, _ = by_hand(settings(), columns, entropy_coeff=0.1, kl_coeff=9.0)
    slope = 2 * 0.1 * 3 / 16 * LN3
    assert by_logits.tolist() == [pytest.approx([-slope, slope])]  # No KL without `use_kl_loss`.
    parts, by_logits, _ = by_hand(settings(use_kl_loss=True), columns, kl_coeff=0.5)
    assert parts[4].tolist() == pytest.approx([math.log(2) - LN3 / 2])
    assert by_logits.tolist() == [pytest.approx([-0.25, 0.25])]


def test_the_total_is_the_mixture_of_the_parts():
    loss = PPOLoss(
        settings(use_kl_loss=True),
        CATEGORICAL,
        entropy_coeff=0.1,
        kl_coeff=0.3,
        like=torch.zeros(1, dtype=torch.float64),
    )
    assert loss.mix.tolist() == [1.0, 0.5, 0.0, -0.1, 0.3]
    assert loss.mix.dtype == torch.float64


class Case:
    """Rows of three workers, with ratios and errors on all sides of their limits."""

    sizes = (5, 9, 1)

    def __init__(self, kind: str, config: Any, seed: int = 0) -> None:
        self.kind, self.config = kind, config
        self.networks = {"categorical": CATEGORICAL, "gaussian": GAUSSIAN}[kind]
        self.distribution = CLASSES[kind]
        generator = torch.Generator().manual_seed(seed)
        num_rows = sum(self.sizes)

        def draw(*shape: int) -> Tensor:
            return torch.randn((num_rows, *shape), generator=generator, dtype=torch.float64)

        self.inputs = (draw(WIDTHS[kind]) / 2).requires_grad_()
        self.values = draw().requires_grad_()
        is_categorical = kind == "categorical"
        actions = torch.arange(num_rows) % 3 if is_categorical else draw(2)
        logp = self.distribution.from_logits(self.inputs.detach()).logp(actions)
        shifts = torch.tensor([0.0, math.log(1.6), -math.log(1.6), 0.1, -0.1]).double()
        advantages = draw().abs() * torch.tensor([1.0, -1.0, 1.0]).repeat_interleave(5)
        advantages[3] = 0.0
        self.columns = {
            Columns.OBS: draw(3),
            Columns.ACTIONS: actions,
            Columns.ACTION_LOGP: logp - shifts[torch.arange(num_rows) % 5],
            Columns.ACTION_DIST_INPUTS: draw(WIDTHS[kind]) / 2,
            Postprocessing.ADVANTAGES: advantages,
            Postprocessing.VALUE_TARGETS: 2 * draw(),
        }

    def oracle(self, weights: Tensor, **coefficients: float) -> tuple[WorkerLosses, Any]:
        def distribution():
            return self.distribution

        losses = ppo_worker_losses(
            module=SimpleNamespace(
                get_train_action_dist_cls=distribution, get_exploration_action_dist_cls=distribution
            ),
            settings=self.config,
            batch=self.columns,
            fwd_out={
                Columns.ACTION_DIST_INPUTS: self.inputs,
                Columns.VF_PREDS: self.values,
            },
            sizes=self.sizes,
            **coefficients,
        )
        total = (losses.total * weights).sum()
        return losses, torch.autograd.grad(total, [self.inputs, self.values])


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize(
    "config",
    [{}, {"use_kl_loss": True}, {"vf_clip_param": None}, {"vf_clip_param": 0.3, "clip_param": 2.0}],
)
@pytest.mark.parametrize("entropy_coeff", [0.0, 0.3])
def test_losses_and_derivatives_equal_those_of_autograd(kind, config, entropy_coeff):
    case = Case(kind, settings(**config))
    coefficients = {"entropy_coeff": entropy_coeff, "kl_coeff": 0.7}
    weights = torch.tensor([0.2, 1.5, -0.4], dtype=torch.float64)
    expected, (wanted_outputs, wanted_values) = case.oracle(weights, **coefficients)
    loss = PPOLoss(case.config, case.networks, like=case.inputs.detach(), **coefficients)
    rows = RowColumns.pack(
        case.columns, networks=case.networks, use_kl_loss=case.config.use_kl_loss
    )
    parts = loss.forward(rows, case.inputs.detach(), case.values.detach())
    means = segment_mean_matrix(case.sizes, like=parts)
    worker_parts = parts @ means.T
    for name, own in zip(PART_NAMES[1:], worker_parts, strict=True):
        torch.testing.assert_close(own, getattr(expected, name), rtol=0, atol=1e-12)
    torch.testing.assert_close(loss.mix @ worker_parts, expected.total.detach(), rtol=0, atol=1e-12)
    by_outputs, by_values = loss.backward(weights @ means)
    torch.testing.assert_close(by_outputs, wanted_outputs, rtol=0, atol=1e-12)
    torch.testing.assert_close(by_values, wanted_values, rtol=0, atol=1e-12)


def test_the_case_has_rows_on_all_sides_of_the_limits():
    case = Case("categorical", settings())
    logp = case.distribution.from_logits(case.inputs).logp(case.columns[Columns.ACTIONS])
    ratio = torch.exp(logp - case.columns[Columns.ACTION_LOGP])
    advantages = case.columns[Postprocessing.ADVANTAGES]
    for sign in (-1, 1):
        for side in (ratio > 1.2, ratio < 0.8, ratio == 1, (ratio - 1).abs() < 0.2):
            assert (side & (advantages * sign > 0)).any()
    square = (case.values - case.columns[Postprocessing.VALUE_TARGETS]).square()
    assert (square > 4).any()
    assert (square < 4).any()


def test_columns_survive_the_packing():
    case = Case("categorical", settings())
    rows = RowColumns.pack(case.columns, networks=CATEGORICAL, use_kl_loss=True)
    index = torch.tensor([4, 0, 11])
    taken = rows.take(index).cut(1, 3)
    for name, column in case.columns.items():
        wanted = column[index][1:3]
        if name == Columns.ACTIONS:
            wanted = torch.eye(3, dtype=torch.float64)[wanted]
        assert torch.equal(taken[name], wanted)
    without = RowColumns.pack(case.columns, networks=CATEGORICAL, use_kl_loss=False)
    assert Columns.ACTION_DIST_INPUTS not in without.slices


def test_an_action_of_one_number_stays_a_column():
    columns = Case("gaussian", settings()).columns
    columns[Columns.ACTIONS] = columns[Columns.ACTIONS][:, :1]
    rows = RowColumns.pack(columns, networks=GAUSSIAN, use_kl_loss=False)
    assert torch.equal(rows[Columns.ACTIONS], columns[Columns.ACTIONS])
    assert rows[Postprocessing.ADVANTAGES].shape == (15,)


# Rows 0-1, 2 and 3-5: 1/2, 1 and 1/3 each.
def test_the_matrix_of_means_by_hand():
    matrix = segment_mean_matrix((2, 1, 3), like=torch.zeros(1))
    assert matrix.dtype == torch.float32
    np.testing.assert_allclose(
        matrix.numpy(),
        [[1 / 2, 1 / 2, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0], [0, 0, 0, 1 / 3, 1 / 3, 1 / 3]],
        rtol=1e-7,
    )
