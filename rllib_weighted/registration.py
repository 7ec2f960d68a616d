"""Makes `WeightedPPO` known to Tune by its name, without loading Ray for it."""

from __future__ import annotations

from typing import Any

import wrapt

ALGORITHM = "WeightedPPO"


def register_with_tune() -> None:
    """Registers the algorithm as soon as Tune is imported, or at once if it has been."""
    wrapt.register_post_import_hook(_register, "ray.tune.registry")


class _Deferred:
    """Stands for the algorithm until it is asked for, then is it.

    Tune's registry keeps its entries pickled (tested with Ray 2.60), and this one's pickle is the
    instruction to import the algorithm. `tune.register_trainable` wants the class itself, which
    cannot be imported here: RLlib imports Tune first, and is then half loaded.
    """

    def __reduce__(self) -> Any:
        return _load, ()


def _load() -> type:
    import rllib_weighted

    return rllib_weighted.WeightedPPO


def _register(registry: Any) -> None:
    registry._global_registry.register(registry.TRAINABLE_CLASS, ALGORITHM, _Deferred())
