"""Weighted merging of the gradients of differently seeded RLlib workers.

Names are loaded when they are first used: what reads records waits for neither Ray nor PyTorch.
"""

from __future__ import annotations

import importlib.abc
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar

import wrapt

from rllib_weighted._private import tune_registry

if TYPE_CHECKING:
    from rllib_weighted.algorithm import WeightedPPO
    from rllib_weighted.config import WeightedPPOConfig
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
    from rllib_weighted.tuning import merge_grid

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
    "merge_grid": "tuning",
}  # The others are merging's.


def __getattr__(name: str) -> Any:
    if name in __all__:
        module = importlib.import_module(f"{__name__}.{_MODULES.get(name, 'merging')}")
        return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class _Deferred:
    """Stands for the algorithm until it is asked for, then is it.

    Tune's registry keeps its entries pickled (tested with Ray 2.60), and this one's pickle is the
    instruction to import the algorithm. `tune.register_trainable` wants the class itself, which
    cannot be imported here: RLlib imports Tune first, and is then half loaded.
    """

    def __reduce__(self) -> Any:
        return __getattr__, ("WeightedPPO",)


def _register_with_tune(registry: Any) -> None:
    tune_registry().register(registry.TRAINABLE_CLASS, "WeightedPPO", _Deferred())


class _MovedModules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the modules of 0.1 that pickles name, in checkpoints and in the state of sweeps."""

    _NEW: ClassVar = {
        f"{__name__}.cli.logs": f"{__name__}.cli.session",
        f"{__name__}.merging.weightings": f"{__name__}.merging.strategies",
        f"{__name__}.trial": f"{__name__}.tuning",
    }

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname in self._NEW else None

    def exec_module(self, module: ModuleType) -> None:
        vars(module).update(vars(importlib.import_module(self._NEW[module.__name__])))


sys.meta_path.append(_MovedModules())

# As soon as Tune is imported, or at once if it has been: nothing else here loads Ray.
wrapt.register_post_import_hook(_register_with_tune, "ray.tune.registry")
