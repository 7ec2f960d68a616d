"""What RLlib's PPO lacks as a trial of a Tune experiment."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import tree
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.ppo.ppo import PPO
from ray.rllib.utils.annotations import override
from ray.rllib.utils.metrics import EVALUATION_RESULTS
from ray.tune.result import SHOULD_CHECKPOINT, TRIAL_INFO

from rllib_weighted.placement import trial_problem
from rllib_weighted.threads import computing_with, round_threads

_STATE_KEY = "tune_trial"


class TrialPPO(PPO):
    """PPO that can be searched and scheduled.

    It refuses to wait for ever, has columns for its evaluation from the start, can be reused for
    another trial, and keeps the settings that a scheduler has changed.

    Attributes:
        settings_of_checkpoint: Settings that a restored trial takes from its own checkpoint.
    """

    config: Any
    settings_of_checkpoint: ClassVar[tuple[str, ...]] = ()

    @override(Algorithm)
    def __init__(self, config: Any = None, *args: Any, **kwargs: Any) -> None:
        # RLlib drops what Tune says of the trial: its own `trial_id` is always "default".
        trial_info = config.get(TRIAL_INFO) if isinstance(config, dict) else None
        self._tune_trial_id: str | None = getattr(trial_info, "trial_id", None)
        self._is_clone = False
        super().__init__(config, *args, **kwargs)

    @override(Algorithm)
    def setup(self, config: Any) -> None:
        super().setup(config)
        self._num_threads = round_threads(
            self.config, num_parameters=self.learner_group.num_parameters
        )

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
        with computing_with(self._num_threads):
            return self._step()

    def _step(self) -> dict[str, Any]:
        results: dict[str, Any] = super().step()
        if self._is_clone:
            results[SHOULD_CHECKPOINT] = True  # Its own, with the settings that it has now.
            self._is_clone = False
        interval = self.config.evaluation_interval
        if not interval or (self.iteration + 1) % interval == 0:
            return results
        if self.iteration == 0 and self.config.evaluation_duration != "auto":
            results.update(self._run_one_evaluation())
        elif EVALUATION_RESULTS in results:
            unknown = tree.map_structure(lambda _: math.nan, results[EVALUATION_RESULTS])
            results[EVALUATION_RESULTS] = unknown
        return results

    @override(Algorithm)
    def get_state(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        state: dict[str, Any] = super().get_state(*args, **kwargs)
        settings = {name: getattr(self.config, name) for name in self.settings_of_checkpoint}
        state[_STATE_KEY] = {"trial_id": self._tune_trial_id, "settings": settings}
        return state

    @override(Algorithm)
    def set_state(self, state: dict[str, Any]) -> None:
        """Restores a state; see `Algorithm.set_state`.

        A resumed experiment gives its trials the settings of their start: Tune (2.60) forgets
        what population-based training has changed, and draws what `tune.sample_from` drew anew.
        So a trial that goes on from a checkpoint of its own takes the settings from there. From
        another trial's, it is a clone, and the settings that it was given are the new ones.
        """
        super().set_state(state)
        saved = state.get(_STATE_KEY)
        if saved is None or self._tune_trial_id is None:
            return
        self._is_clone = saved["trial_id"] != self._tune_trial_id
        if not self._is_clone:
            config = self.config.copy(copy_frozen=False)
            for name, value in saved["settings"].items():
                setattr(config, name, value)
            config.freeze()
            self.config = config

    @override(Algorithm)
    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Starts over in the same process with the config of another trial (`reuse_actors`)."""
        # `Trainable.reset` has put that plain dict in place of the config already.
        self.cleanup()
        info = {TRIAL_INFO: self._trial_info}
        type(self).__init__(self, {**new_config, **info}, storage=self._storage)
        return True
