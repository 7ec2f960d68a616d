"""Weighted merging of the gradients of differently seeded RLlib workers.

Names are loaded when they are first used: what reads records waits for neither Ray nor PyTorch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from rllib_weighted.registration import register_with_tune

if TYPE_CHECKING:
    from rllib_weighted.algorithm import WeightedPPO
    from rllib_weighted.config import WeightedPPOConfig
    from rllib_weighted.grids import merge_grid
    from rllib_weighted.learning.connectors import ScaleRewards
    from rllib_weighted.merging import (
        ActorAverage,
        ActorSum,
        Average,
        LossWeighted,
        RewardWeighted,
        Sum,
        Weighting,
        merge_weights,
        register_strategy,
    )

__version__ = "0.1.0"

__all__ = [
    "ActorAverage",
    "ActorSum",
    "Average",
    "LossWeighted",
    "RewardWeighted",
    "ScaleRewards",
    "Sum",
    "WeightedPPO",
    "WeightedPPOConfig",
    "Weighting",
    "merge_grid",
    "merge_weights",
    "register_strategy",
]

_MODULES = {
    "ScaleRewards": "learning.connectors",
    "WeightedPPO": "algorithm",
    "WeightedPPOConfig": "config",
    "merge_grid": "grids",
}  # The others are merging's.


def __getattr__(name: str) -> Any:
    if name in __all__:
        module = importlib.import_module(f"{__name__}.{_MODULES.get(name, 'merging')}")
        return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


register_with_tune()
