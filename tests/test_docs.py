"""The specification's page shows the file that it is about; CONTRIBUTING lists what is needed."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from ray._common.deprecation import DEPRECATED_VALUE
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.algorithms.ppo import PPOConfig

from rllib_weighted import WeightedPPOConfig
from rllib_weighted.core.eligibility import Requirement
from rllib_weighted.core.modules import NETWORKS, PER_WORKER, STACKED
from rllib_weighted.learning.batch import COLUMNS
from rllib_weighted.learning.closed_form.steps import CLOSED_FORM
from rllib_weighted.learning.losses import STOCK_LOSS
from rllib_weighted.sampling.fast_sampler import COLUMN_SAMPLING, FAST_SAMPLING

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "specification.md").read_text(encoding="utf-8")
SPECIFICATION = (ROOT / "tests" / "reference_ppo.py").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
ESSENTIAL = [
    "Settings",
    "gae",
    "standardized",
    "ppo_loss",
    "gradient",
    "shares",
    "weights",
    "minibatches",
    "update",
    "take_step",
]


def lines_of(name: str) -> str:
    """A function or class of the specification, with its decorators and comments."""
    (node,) = [
        node
        for node in ast.parse(SPECIFICATION).body
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name == name
    ]
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    return "".join(SPECIFICATION.splitlines(keepends=True)[first - 1 : node.end_lineno])


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.splitlines()[0])
def test_every_block_stands_in_the_specification(block: str) -> None:
    assert f"\n{block}" in SPECIFICATION


@pytest.mark.parametrize("name", ESSENTIAL)
def test_the_page_shows_what_is_essential(name: str) -> None:
    assert any(lines_of(name) in block for block in BLOCKS)


def test_a_changed_block_is_noticed() -> None:
    changed = lines_of("weights").replace("1 / n", "2 / n")
    assert changed not in SPECIFICATION


@pytest.mark.parametrize("link", re.findall(r"\]\((\.\.?/[^)]+)\)", PAGE))
def test_links_lead_to_files(link: str) -> None:
    assert (ROOT / "docs" / link).is_file()


# CONTRIBUTING

PATHS: dict[str, Iterable[Requirement[Any]]] = {
    "arrays while sampling": FAST_SAMPLING,
    "columns from the env runner": COLUMN_SAMPLING,
    "columns to the learner": COLUMNS,
    "all workers' losses at once": STOCK_LOSS,
    "layers of a module": NETWORKS,
    "closed-form steps": CLOSED_FORM,
    "parameters per worker": PER_WORKER,
    "these in one forward pass": STACKED,
}


def eligibility_table() -> str:
    """What every fast path needs, a row per requirement, as CONTRIBUTING has it."""
    rows = [f"| {path} | {row.needs} |" for path, table in PATHS.items() for row in table]
    return "\n".join(["| Path | needs |", "|---|---|", *rows])


def test_contributing_lists_what_every_fast_path_needs() -> None:
    assert eligibility_table() in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


# The list of RLlib's settings

SETTINGS_PAGE = (ROOT / "docs" / "settings-of-rllib.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    return SETTINGS_PAGE.partition(f"## {title}")[2].partition("\n## ")[0]


def settings_of(config: AlgorithmConfig) -> set[str]:
    """All settings by name, but for those whose default marks them as deprecated."""
    values = vars(config).items()
    return {key for key, value in values if not (type(value) is int and value == DEPRECATED_VALUE)}


LISTED = [
    name
    for title in ("Honoured as", "Honoured, in", "Refused", "No-ops")
    for line in section(title).splitlines()
    # Of a table, the first column names settings.
    for name in re.findall(r"`(\w+)`", line.split("|")[1] if line.startswith("|") else line)
]


def test_every_setting_of_rllib_is_listed() -> None:
    """One that is missing is new in RLlib: see what it does, and put it where it belongs."""
    assert settings_of(PPOConfig()) - set(LISTED) == set()


def test_no_setting_is_listed_twice_or_gone() -> None:
    assert [name for name in LISTED if LISTED.count(name) > 1] == []
    assert set(LISTED) - vars(PPOConfig()).keys() - {"enable_rl_module_and_learner"} == set()


REFUSED: dict[str, Any] = {
    "output": "/data",
    "input_": "/data",
    "offline_evaluation_interval": 2,
    "num_offline_eval_runners": 1,
    "num_aggregator_actors_per_learner": 1,
    "torch_ddp_kwargs": {"bucket_cap_mb": 1},
    "torch_skip_nan_gradients": True,
    "policies": {"one", "two"},
    "policy_mapping_fn": None,  # It is nothing without several policies.
    "policies_to_train": [],
    "framework_str": "tf2",
    "enable_rl_module_and_learner": False,
    "enable_env_runner_and_connector_v2": False,
    "exploration_config": {"type": "StochasticSampling"},
    "lr_schedule": [[0, 0.1], [100, 0.01]],
    "entropy_coeff_schedule": [[0, 0.1], [100, 0.01]],
}


def test_the_refused_ones_are_tried() -> None:
    rows = [line.split("|")[1] for line in section("Refused").splitlines() if line[:1] == "|"]
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == REFUSED.keys()


@pytest.mark.parametrize("name", sorted(REFUSED.keys() - {"policy_mapping_fn"}))
def test_what_is_called_refused_is(name: str) -> None:
    config = WeightedPPOConfig().environment("CartPole-v1")
    config.validate()
    setattr(config, name, REFUSED[name])
    with pytest.raises(ValueError, match=name.removesuffix("_str")):
        config.validate()
