"""`AddInfosFromEpisodesToTrainBatch`: the user's loss finds each row's own info."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from ray.rllib.connectors.learner import AddInfosFromEpisodesToTrainBatch
from ray.rllib.core.columns import Columns

from rllib_weighted.learning.learner import WeightedPPOLearner
from tests.sampling.envs import ScriptedEnv
from tests.sampling.helpers import make_config

_SEEN: list[tuple[int, list[Any], Any]] = []


class InfoLoss(WeightedPPOLearner):
    """Writes down what its loss sees of the infos."""

    def compute_loss_for_module(self, *, module_id: Any, batch: Any, **kwargs: Any) -> Any:
        mask = batch.get(Columns.LOSS_MASK)
        times = batch[Columns.OBS][..., 0]
        real = times[mask] if mask is not None else times
        _SEEN.append((len(times), list(batch[Columns.INFOS]), real.tolist()))
        return super().compute_loss_for_module(module_id=module_id, batch=batch, **kwargs)


class TimedEnv(ScriptedEnv):
    """Its info says which observation it came with."""

    def reset(self, **kwargs: Any) -> Any:
        obs, _ = super().reset(**kwargs)
        return obs, {"t": 0}


def _train(minibatch_size: int | None, **model: Any) -> None:
    config = make_config(TimedEnv).environment(env_config={"length": [3, 7]})
    config.training(
        num_epochs=2,
        minibatch_size=minibatch_size,
    ).learners(
        learner_class=InfoLoss,
        learner_connector=lambda obs, act: AddInfosFromEpisodesToTrainBatch(),
    )
    config.rl_module(model_config={"fcnet_hiddens": [8], **model})
    algorithm = config.build_algo()
    _SEEN.clear()
    try:
        algorithm.train()
    finally:
        algorithm.stop()


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("minibatch_size", [None, 10])
def test_every_row_has_its_own_info(minibatch_size: int | None) -> None:
    _train(minibatch_size)
    assert len(_SEEN) >= 4  # One per worker and step.
    orders = set()
    for num_rows, infos, times in _SEEN:
        assert len(infos) == num_rows
        assert [info["t"] for info in infos] == times
        orders.add(tuple(times))
    # Each worker's own; minibatches are shuffled.
    assert len(orders) == 2 if minibatch_size is None else len(orders) > 4


@pytest.mark.usefixtures("ray_session")
def test_sequences_have_those_of_their_steps() -> None:
    _train(None, use_lstm=True, lstm_cell_size=4, max_seq_len=4)
    for _, infos, times in _SEEN:
        found = [info["t"] for info in infos]
        # RLlib's artificial last step of a chunk repeats an observation, and is masked out.
        left = iter(found)
        assert all(time in left for time in times)
        assert len(times) <= len(found) <= 2 * len(times)
    assert np.sum([len(times) for _, _, times in _SEEN]) > 0
