"""Calls of the old API stack name their successors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from rllib_weighted import WeightedPPO
from tests.sampling.helpers import make_config

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture(scope="module")
def algorithm(ray_session: None) -> Iterator[Any]:
    algorithm = make_config().build_algo()
    yield algorithm
    algorithm.stop()


@pytest.mark.parametrize(
    ("name", "successor"),
    [
        ("compute_single_action", "get_module.*forward_inference"),
        ("compute_actions", "get_module.*forward_inference"),
        ("get_policy", "get_module"),
        ("add_policy", "one module"),
        ("remove_policy", "one module"),
        ("export_policy_model", "save_to_path"),
        ("export_policy_checkpoint", "save_to_path"),
    ],
)
def test_a_call_names_its_successor(algorithm: Any, name: str, successor: str) -> None:
    with pytest.raises(ValueError, match=rf"`{name}\(\)` belongs to .* old API stack.*{successor}"):
        getattr(algorithm, name)(np.zeros(4))


def test_from_state_names_its_successor() -> None:
    with pytest.raises(ValueError, match="from_checkpoint"):
        WeightedPPO.from_state({})


@pytest.mark.parametrize(
    ("name", "successor"),
    [("workers", "env_runner_group"), ("evaluation_workers", "eval_env_runner_group")],
)
def test_an_attribute_names_its_successor(algorithm: Any, name: str, successor: str) -> None:
    with pytest.raises(AttributeError, match=f"`{name}` .*`algorithm.{successor}`"):
        getattr(algorithm, name)
    assert not hasattr(algorithm, name)


def test_the_successors_exist(algorithm: Any) -> None:
    outputs = algorithm.get_module().forward_inference({"obs": _tensor()})
    distribution = algorithm.get_module().get_inference_action_dist_cls()
    actions = distribution.from_logits(outputs["action_dist_inputs"]).to_deterministic().sample()
    assert actions.shape == (3,)
    assert algorithm.env_runner_group is not None
    assert hasattr(algorithm, "eval_env_runner_group")


def _tensor() -> Any:
    import torch

    return torch.zeros(3, 4)


def test_weights_can_be_set_as_they_were_got(algorithm: Any) -> None:
    weights = algorithm.get_weights()
    (module_id,) = weights
    halved = {name: value / 2 for name, value in weights[module_id].items()}
    algorithm.set_weights({module_id: halved})
    found = algorithm.get_weights()[module_id]
    for name, value in halved.items():
        np.testing.assert_array_equal(found[name], value)
        assert not np.array_equal(value, weights[module_id][name]) or not value.any()
    own = algorithm.env_runner.module.get_state()
    np.testing.assert_array_equal(own[next(iter(own))], halved[next(iter(own))])
    algorithm.train()
