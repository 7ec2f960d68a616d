"""The package loads nothing heavy, and Tune knows the algorithm whichever is imported first."""

from __future__ import annotations

import importlib
import pickle
import subprocess
import sys

import pytest

import rllib_weighted

LIGHT = """
import sys
import rllib_weighted, rllib_weighted.records, rllib_weighted.report, rllib_weighted.cli.main
import rllib_weighted.cli.report
heavy = {"ray", "torch", "gymnasium"} & set(sys.modules)
assert not heavy, heavy
"""

QUICK = """
import sys
before = set(sys.modules)
import rllib_weighted
slow = {"asyncio", "importlib.resources", "inspect", "wrapt"} & (set(sys.modules) - before)
assert not slow, slow
"""
PACKAGE_FIRST = "import rllib_weighted\nfrom ray import tune"
TUNE_FIRST = "from ray import tune\nimport rllib_weighted"
RLLIB_LATER = "import rllib_weighted\nfrom ray.rllib.algorithms.ppo import PPO"
KNOWN = """
from ray.tune.registry import get_trainable_cls
assert get_trainable_cls("WeightedPPO") is rllib_weighted.WeightedPPO
"""
CONFIG_ALONE = """
from rllib_weighted.config import WeightedPPOConfig
import rllib_weighted
assert WeightedPPOConfig().algo_class is rllib_weighted.WeightedPPO
"""


@pytest.mark.parametrize(
    "code",
    [LIGHT, QUICK, PACKAGE_FIRST + KNOWN, TUNE_FIRST + KNOWN, RLLIB_LATER + KNOWN, CONFIG_ALONE],
    ids=["light", "quick", "package first", "tune first", "rllib later", "config alone"],
)
def test_imports(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


def test_every_public_name_loads() -> None:
    for name in rllib_weighted.__all__:
        assert getattr(rllib_weighted, name).__name__ == name


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'WeigtedPPO'"):
        _ = rllib_weighted.WeigtedPPO


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("rllib_weighted.cli.logs:ProgressTable", "rllib_weighted.cli.session"),
        ("rllib_weighted.merging.weightings:RewardWeighted", "rllib_weighted.merging.strategies"),
        ("rllib_weighted.trial:TrialPPO", "rllib_weighted.tuning"),
    ],
)
def test_pickles_of_earlier_versions_find_what_they_name(old: str, new: str) -> None:
    module, _, name = old.partition(":")
    found = pickle.loads(f"c{module}\n{name}\n.".encode())
    assert (found.__module__, found.__name__) == (new, name)


def test_other_modules_that_are_not_there_are_still_missing() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"rllib_weighted\.not_there"):
        importlib.import_module("rllib_weighted.not_there")
