"""A word in the log where a learner was put on a GPU and a CPU may well be faster."""

from __future__ import annotations

from typing import Any

import torch

from rllib_weighted.core.modules import why_not_networks

FEW_PARAMETERS = 100_000
"""Below this the hint is given.

Measured with 64-64 before steps were captured as CUDA graphs, 48 steps of 256 samples: 0.039 s on
16 cores, 0.33 s on an H200, which took as long for 1024-1024-1024. With capture it has not been
measured, so that the hint asks for a comparison.
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
        f"The learner is on a GPU with {count:,} parameters in dense layers. With so few a CPU is "
        "often faster: compare with `num_gpus_per_learner`=0."
    )
