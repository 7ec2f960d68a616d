"""Every requirement of a fast path in the learner is broken by some case, and says why."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import pytest
import torch
from ray.rllib.algorithms.ppo.torch.default_ppo_torch_rl_module import DefaultPPOTorchRLModule
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.rl_module.apis import SelfSupervisedLossAPI
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from torch import nn

from rllib_weighted.core.eligibility import Requirement
from rllib_weighted.core.modules import NETWORKS, PER_WORKER, STACKED
from rllib_weighted.learning.batch import COLUMNS
from rllib_weighted.learning.closed_form.steps import CLOSED_FORM
from rllib_weighted.learning.interfaces import TrainedModule
from rllib_weighted.learning.learner import WeightedPPOLearner
from rllib_weighted.learning.losses import STOCK_LOSS
from tests.learning.closed_form.helpers import make_module
from tests.learning.closed_form.test_steps_eligibility import subclass, swap_optimizer
from tests.learning.helpers import build_group, learner_of, small_config
from tests.learning.test_update_columns import _Piece

LSTM = {"use_lstm": True, "lstm_cell_size": 3, "max_seq_len": 5}


class OwnLoss(DefaultPPOTorchRLModule, SelfSupervisedLossAPI):
    """A module that computes its own loss."""

    def compute_self_supervised_loss(self, **kwargs: Any) -> None:
        """Not called here."""


class OwnModule(DefaultPPOTorchRLModule):
    """A module of a user's."""


def learner(change: Callable[[Any], Any] = lambda config: config) -> Any:
    return learner_of(build_group(change(small_config(2))))


def with_class(learner_class: type) -> Any:
    return learner(lambda config: config.learners(learner_class=learner_class))


def with_module(**model: Any) -> Any:
    return learner(lambda c: c.rl_module(model_config=DefaultModelConfig(**model)))


def with_module_class(module_class: type) -> Any:
    return learner(lambda c: c.rl_module(rl_module_spec=RLModuleSpec(module_class=module_class)))


def with_optimizer(make: Callable[[list[Any]], Any]) -> Any:
    made = learner()
    swap_optimizer(made, make)
    return made


def one_of_several_on_gpus() -> Any:
    made = learner()
    made._device = torch.device("cuda", 0)
    made.collectives.is_solo = False
    return made


def compiled() -> Any:
    module = make_module()
    module._forward_train = module._forward_train
    return module


def frozen() -> Any:
    module = make_module()
    next(module.parameters()).requires_grad_(False)
    return module


def with_statistics() -> Any:
    module = make_module()
    module.pi.net.mlp.append(nn.BatchNorm1d(2))
    return module


def with_convolution() -> Any:
    module = make_module()
    module.pi.net.mlp.append(nn.Conv2d(1, 1, 1))
    return module


def two_modules() -> Any:
    module = learner().module
    return SimpleNamespace(
        config=small_config(2), module={"one": module[DEFAULT_MODULE_ID], "two": make_module()}
    )


def of_module(made: Any) -> Any:
    return TrainedModule(made, DEFAULT_MODULE_ID)


# Table -> for each row, in its order, a subject that breaks it and no row before it.
CASES: dict[str, tuple[tuple[Requirement[Any], ...], list[Callable[[], Any]]]] = {
    "columns": (
        COLUMNS,
        [
            lambda: learner(lambda c: c.env_runners(fast_sampling=False)),
            two_modules,
            lambda: with_module(fcnet_hiddens=[4], **LSTM),
            lambda: with_class(subclass("update")),
            lambda: learner(lambda c: c.learners(learner_connector=lambda *_: _Piece())),
        ],
    ),
    "stock loss": (
        STOCK_LOSS,
        [
            lambda: of_module(with_class(subclass("compute_loss_for_module"))),
            lambda: of_module(with_class(subclass("compute_losses"))),
            lambda: of_module(with_module(fcnet_hiddens=[4], **LSTM)),
            lambda: of_module(with_module_class(OwnLoss)),
        ],
    ),
    "closed form": (
        CLOSED_FORM,
        [
            lambda: of_module(learner(lambda c: c.learners(fast_learner=False))),
            lambda: of_module(with_class(subclass("compute_losses"))),
            lambda: of_module(with_class(subclass("apply_gradients"))),
            lambda: of_module(learner(lambda c: c.training(use_critic=False))),
            lambda: of_module(learner(lambda c: c.reporting(log_gradients=True))),
            lambda: of_module(
                learner(lambda c: c.experimental(_torch_grad_scaler_class=torch.amp.GradScaler))
            ),
            lambda: of_module(
                learner(lambda c: c.experimental(_torch_lr_scheduler_classes=[lambda o: None]))
            ),
            lambda: of_module(one_of_several_on_gpus()),
            lambda: of_module(with_optimizer(lambda p: torch.optim.SGD(p, lr=0.1))),
            lambda: of_module(with_optimizer(lambda p: torch.optim.Adam(p[:-2]))),
            lambda: of_module(with_module(fcnet_hiddens=[4], fcnet_activation="silu")),
        ],
    ),
    "networks": (
        NETWORKS,
        [
            compiled,
            lambda: make_module(action_space=gym.spaces.MultiDiscrete([2, 3])),
            frozen,
            lambda: make_module(fcnet_activation="silu"),
        ],
    ),
    "stacked": (
        STACKED,
        [
            lambda: make_module(module_class=OwnModule),
            lambda: make_module(**LSTM),
            compiled,
            with_convolution,
            with_statistics,
        ],
    ),
    "per worker": (PER_WORKER, [with_statistics]),
}
ROWS = [
    pytest.param(table, index, broken, id=f"{name}: {table[index].needs}")
    for name, (table, cases) in CASES.items()
    for index, broken in enumerate(cases)
]


@pytest.mark.parametrize(("table", "index", "broken"), ROWS)
def test_each_requirement_is_broken_by_its_case_alone(
    table: tuple[Requirement[Any], ...], index: int, broken: Callable[[], Any]
) -> None:
    subject = broken()
    met = [requirement.reason(subject) for requirement in table[:index]]
    assert met == [None] * index
    assert table[index].reason(subject)


def test_every_row_has_a_case() -> None:
    assert {name: len(table) for name, (table, _) in CASES.items()} == {
        name: len(cases) for name, (_, cases) in CASES.items()
    }


def test_the_default_learner_meets_all() -> None:
    made: WeightedPPOLearner = learner()
    module = made.module[DEFAULT_MODULE_ID].unwrapped()
    for table, subject in (
        (COLUMNS, made),
        (STOCK_LOSS, of_module(made)),
        (CLOSED_FORM, of_module(made)),
        (NETWORKS, module),
        (STACKED, module),
        (PER_WORKER, module),
    ):
        assert [requirement.reason(subject) for requirement in table] == [None] * len(table)
