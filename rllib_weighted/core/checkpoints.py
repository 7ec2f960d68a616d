"""Why a checkpoint cannot be restored: damaged files, or another environment than it is of."""

from __future__ import annotations

import collections
import contextlib
import json
import pickletools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

MODULE_FOLDER = Path("learner_group", "learner", "rl_module")
"""Where an algorithm's checkpoint has its module."""


@contextlib.contextmanager
def restoring(folder: Path, module: Callable[[], Any] = lambda: None) -> Iterator[None]:
    """Says of an error inside the block what is wrong with the checkpoint, if that is its cause.

    Args:
        folder: The checkpoint; looked at only if it lies on a local disk.
        module: Returns the RLModule that it is restored into; None if there is none yet.

    Raises:
        ValueError: A file of it is damaged, or it is of an environment with other spaces.
    """
    try:
        yield
    except Exception:
        damaged = [path for path in sorted(folder.rglob("*")) if _is_damaged(path)]
        if damaged:
            names = ", ".join(str(path.relative_to(folder)) for path in damaged)
            raise ValueError(
                f"the checkpoint {folder} is damaged: its files should be whole and these are not: "
                f"{names}. Take an earlier checkpoint"
            ) from None
        if told := _other_spaces(folder, module):
            raise ValueError(
                f"the checkpoint {folder} is of another environment: that should be the one of the "
                f"training, with its {told}. Use that environment"
            ) from None
        raise


def _is_damaged(path: Path) -> bool:
    """Whether a file of a checkpoint cannot be read to its end; nothing in it is executed."""
    try:
        if path.suffix == ".pkl":
            collections.deque(pickletools.genops(path.read_bytes()), maxlen=0)
        elif path.suffix == ".json":
            json.loads(path.read_bytes())
    except Exception:  # `pickletools` raises whatever a wrong byte leads to.
        return True
    return False


def _other_spaces(folder: Path, module: Callable[[], Any]) -> str:
    """Returns in which spaces a checkpoint's module and another one differ, in words."""
    from ray.rllib.core import DEFAULT_MODULE_ID
    from ray.rllib.core.rl_module.multi_rl_module import MultiRLModule

    try:
        trained = MultiRLModule.from_checkpoint(str(folder / MODULE_FOLDER))[DEFAULT_MODULE_ID]
        restored = module()
        pairs = {
            name: (getattr(trained, name), getattr(restored, name))
            for name in ("observation_space", "action_space")
        }
    except Exception:  # The failure that is to be explained is another one.
        return ""
    told = [f"{name} {then}, found {now}" for name, (then, now) in pairs.items() if then != now]
    return " and its ".join(told)
