"""What the shell completes: names of examples and of algorithms, without waiting for Ray."""

from __future__ import annotations

from rllib_weighted.cli import InputError
from rllib_weighted.cli.examples import list_examples

ALGORITHMS = (
    "WeightedPPO",
    "APPO",
    "BC",
    "CQL",
    "DQN",
    "DreamerV3",
    "IMPALA",
    "IQL",
    "MARWIL",
    "PPO",
    "SAC",
)
"""As in RLlib's registry, which takes seconds to import."""


def complete_algorithm(incomplete: str) -> list[str]:
    """Returns the algorithms whose names begin like this."""
    return [name for name in ALGORITHMS if name.startswith(incomplete)]


def complete_example(incomplete: str) -> list[tuple[str, str]]:
    """Returns the examples whose names begin like this, each with what it is."""
    try:
        examples = list_examples()
    except InputError:  # A broken installation: the command itself says so.
        return []
    return [(one.name, one.summary) for one in examples if one.name.startswith(incomplete)]
