from __future__ import annotations

import math

import numpy as np
import pytest

from rllib_weighted.learning.connectors import ScaleRewards
from tests.learning.helpers import make_episode


@pytest.mark.parametrize("scale", [0, -1, 0.0, math.inf, math.nan, True])
def test_bad_factors_are_refused(scale):
    with pytest.raises(ValueError, match=r"`scale` should be a finite number > 0, found"):
        ScaleRewards(scale)


def test_rewards_are_scaled_and_episodes_left_alone():
    episodes = [make_episode(0, 3, seed=0), make_episode(1, 2, seed=1)]
    before = [episode.get_rewards().copy() for episode in episodes]
    batch = ScaleRewards(0.5)(batch={}, episodes=episodes, rl_module=None)
    found = [np.concatenate(list(values)) for values in batch["rewards"].values()]
    for values, rewards, episode in zip(found, before, episodes, strict=True):
        np.testing.assert_allclose(values, 0.5 * rewards)
        np.testing.assert_array_equal(episode.get_rewards(), rewards)
    assert np.abs(np.concatenate(found)).max() > 0
