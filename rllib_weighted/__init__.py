"""Weighted merging of the gradients of differently seeded RLlib workers.

Names are loaded when they are first used: what reads records waits for neither Ray nor PyTorch.
"""

from __future__ import annotations

import importlib
import sys
from importlib.machinery import ModuleSpec, SourceFileLoader
from types import ModuleType
from typing import TYPE_CHECKING, Any

from rllib_weighted._private import tune_registry

if TYPE_CHECKING:
    from rllib_weighted.algorithm import WeightedPPO
    from rllib_weighted.config import WeightedPPOConfig
    from rllib_weighted.core.catalogs import CautiousPPOCatalog
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
    from rllib_weighted.policy import load_policy
    from rllib_weighted.tuning import merge_grid

__version__ = "0.2.0"

__all__ = [
    "ActorAverage",
    "ActorSum",
    "Average",
    "CautiousPPOCatalog",
    "LossWeighted",
    "RewardWeighted",
    "ScaleRewards",
    "Sum",
    "WeightedPPO",
    "WeightedPPOConfig",
    "Weighting",
    "load_policy",
    "merge_grid",
    "merge_weights",
    "register_strategy",
]

_MODULES = {
    "CautiousPPOCatalog": "core.catalogs",
    "ScaleRewards": "learning.connectors",
    "WeightedPPO": "algorithm",
    "WeightedPPOConfig": "config",
    "load_policy": "policy",
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


_REGISTRY = "ray.tune.registry"

_MOVED = {
    f"{__name__}.cli.logs": f"{__name__}.cli.session",
    f"{__name__}.merging.weightings": f"{__name__}.merging.strategies",
    f"{__name__}.trial": f"{__name__}.tuning",
}


class _RegistryLoader(SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        _register_with_tune(module)


class _MovedLoader:
    def create_module(self, spec: ModuleSpec) -> None:
        """Leaves it to Python."""

    def exec_module(self, module: ModuleType) -> None:
        vars(module).update(vars(importlib.import_module(_MOVED[module.__name__])))


class _Finder:
    """Registers with Tune when Tune is imported; finds the modules of 0.1 that pickles name.

    These lie in checkpoints and in the state of sweeps. No base class of `importlib.abc`: it takes
    as long to import as all else here.
    """

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if fullname in _MOVED:
            return ModuleSpec(fullname, _MovedLoader())  # type: ignore[arg-type]
        if fullname != _REGISTRY:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        specs = (finder.find_spec(fullname, path, target) for finder in others)
        spec = next(filter(None, specs), None)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _RegistryLoader(spec.loader.name, spec.loader.path)
        return spec


# As soon as Tune is imported, or at once if it has been: nothing else here loads Ray.
sys.meta_path.insert(0, _Finder())
if _REGISTRY in sys.modules:
    _register_with_tune(sys.modules[_REGISTRY])
