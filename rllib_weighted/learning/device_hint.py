"""A word in the log where a learner was put on a GPU and a CPU would be faster."""

from __future__ import annotations

from typing import Any

import torch

from rllib_weighted.core.modules import why_not_networks

FEW_PARAMETERS = 100_000
"""Below this the hint is given.

Measured with 64-64, 48 steps of 256 samples: 0.039 s on 16 cores, 0.33 s on an H200, which spends
them on being told what to do, with 1024-1024-1024 as well. The bound lies between these two: ten
times as much work as with 64-64 on the CPU, and the same time on the GPU.
"""


def device_hint(device: str, module: Any) -> str | None:
    """Returns what to say of a learner's device, or None if nothing is.

    Args:
        device: Where the learner computes, as torch names it.
        module: Its module. Only of RLlib's dense networks is it known what a CPU would take.
    """
    if torch.device(device).type == "cpu" or why_not_networks(module) is not None:
        return None
    count = sum(parameter.numel() for parameter in module.parameters())
    if count >= FEW_PARAMETERS:
        return None
    return (
        f"The learner is on a GPU with {count:,} parameters in dense layers. A CPU is faster at so "
        "few: leave `num_gpus_per_learner` at 0, and see docs/how-to/gpu.md to measure."
    )
