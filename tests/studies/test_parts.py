"""Every pre-registered arm is a config that can be trained, and no two arms are the same."""

import json
from dataclasses import asdict

import pytest

from studies.design import Arm, Experiment, Task
from studies.parts import PARTS
from studies.training import config_of

ARMS = [
    (part.name, experiment, arm)
    for part in PARTS.values()
    for experiment in part.experiments
    for arm in experiment.arms
]


@pytest.mark.parametrize(
    ("experiment", "arm"),
    [pytest.param(e, a, id=f"{part}-{e.name}-{a.name}") for part, e, a in ARMS],
)
def test_a_config_is_valid(experiment, arm):
    config = config_of(experiment.task, arm, experiment.seeds[0])
    config.validate()
    assert config.seed == experiment.seeds[0]


@pytest.mark.parametrize("part", PARTS.values(), ids=list(PARTS))
def test_arms_differ_and_seeds_repeat_nowhere(part):
    for experiment in part.experiments:
        settings = [
            json.dumps({**asdict(arm), "name": ""}, sort_keys=True) for arm in experiment.arms
        ]
        assert len(set(settings)) == len(settings)
        assert len(set(experiment.seeds)) == len(experiment.seeds) >= 10


def test_contrasts_name_arms():
    task = Task("task", "CartPole-v1", 1, 1.0, {})
    with pytest.raises(ValueError, match=r"contrasts name \['fsat'\]"):
        Experiment(task, (Arm("base"), Arm("fast")), (1,), (("fsat", "base"),))
    with pytest.raises(ValueError, match="different names"):
        Experiment(task, (Arm("base"), Arm("base")), (1,), ())
