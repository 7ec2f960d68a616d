"""RLlib's default networks, started otherwise."""

from __future__ import annotations

from typing import Any

import torch
from ray.rllib.algorithms.ppo.ppo_catalog import PPOCatalog

INITIAL_LOG_STD = -2.0
"""RL-Zoo's `log_std_init` for MuJoCo."""


class CautiousPPOCatalog(PPOCatalog):
    """RLlib's default networks; a policy of continuous actions starts with a deviation of 0.14.

    RLlib starts at 1, in units of half the actions' range: about a third of what is drawn lies
    beyond the bounds and is clipped. Locomotion learns faster from small movements. It takes
    `DefaultModelConfig(free_log_std=True)`, whose deviations are parameters of their own:

        .rl_module(
            rl_module_spec=RLModuleSpec(
                catalog_class=CautiousPPOCatalog,
                model_config=DefaultModelConfig(free_log_std=True),
            )
        )

    Raises:
        ValueError: If the deviations are outputs of the network, or actions are not continuous.
    """

    def build_pi_head(self, framework: str) -> Any:
        """Returns RLlib's head, its deviations set to exp(-2)."""
        head = super().build_pi_head(framework)
        if not isinstance(getattr(head, "log_std", None), torch.nn.Parameter):
            raise ValueError(
                f"`{type(self).__name__}` should go with continuous actions and "
                f"`free_log_std=True`, found {self.action_space} and "
                f"free_log_std={self._model_config_dict.get('free_log_std', False)}: set it in "
                "`DefaultModelConfig`, or leave the catalog out"
            )
        torch.nn.init.constant_(head.log_std, INITIAL_LOG_STD)
        return head
