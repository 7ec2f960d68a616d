"""What RLlib's PPO lacks as a trial of a Tune experiment."""

from __future__ import annotations

import math
from typing import Any

import tree
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.ppo.ppo import PPO
from ray.rllib.utils.annotations import override
from ray.rllib.utils.metrics import EVALUATION_RESULTS

from rllib_weighted.placement import trial_problem


class TrialPPO(PPO):
    """PPO that refuses to wait for ever, and whose evaluation has its columns from the start."""

    @classmethod
    @override(Algorithm)
    def default_resource_request(cls, config: Any) -> Any:
        """Returns what a trial asks Tune for; see `Algorithm.default_resource_request`.

        Raises:
            ValueError: The running Ray can never place it, so that it would wait for ever.
        """
        request = super().default_resource_request(config)
        problem = trial_problem(cls.get_default_config().update_from_dict(config), request)
        if problem is not None:
            raise ValueError(problem)
        return request

    @override(Algorithm)
    def step(self) -> dict[str, Any]:
        """One round, evaluated if it is time to; see `Algorithm.step`.

        Where there is an `evaluation_interval`, the first round is evaluated too: Tune's
        progress.csv takes its columns from the first result. A round without evaluation reports
        NaN (RLlib, 2.60, repeats the last values once). `_run_one_evaluation` is RLlib's private
        `evaluate()` with the care for failed env runners around it.
        """
        results: dict[str, Any] = super().step()
        interval = self.config.evaluation_interval
        if not interval or (self.iteration + 1) % interval == 0:
            return results
        if self.iteration == 0 and self.config.evaluation_duration != "auto":
            results.update(self._run_one_evaluation())
        elif EVALUATION_RESULTS in results:
            unknown = tree.map_structure(lambda _: math.nan, results[EVALUATION_RESULTS])
            results[EVALUATION_RESULTS] = unknown
        return results
