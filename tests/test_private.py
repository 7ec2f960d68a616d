"""Canaries of every private name of Ray, RLlib, gymnasium and torch that the package leans on.

Each row of `NAMES` is looked up in the installed versions; the test fails with the name and the
version when upstream changes it.
"""

from __future__ import annotations

import importlib
import inspect
from typing import Any, NamedTuple

import gymnasium
import pytest
import ray


class PrivateName(NamedTuple):
    """A private name of another package.

    Attributes:
        owner: The class or module that has it: `module:Class`, or `module`.
        name: The attribute, method or function.
        reason: What it is needed for, and when it can go.
        parameters: Of a method that is called or overridden, its parameters without `self`.
    """

    owner: str
    name: str
    reason: str
    parameters: tuple[str, ...] | None = None

    def problem(self) -> str | None:
        """Returns what upstream has changed; None if the name is as it was."""
        module, _, class_name = self.owner.partition(":")
        owner: Any = importlib.import_module(module)
        if class_name:
            owner = getattr(owner, class_name, None)
            if owner is None:
                return f"{self.owner} is gone"
        found = getattr(owner, self.name, None)
        if not hasattr(owner, self.name):
            # Attributes of instances are not the class's: look where they are set.
            classes = owner.__mro__[:-1] if isinstance(owner, type) else [owner]
            if not any(f"self.{self.name}" in inspect.getsource(cls) for cls in classes):
                return f"{self.owner} has no `{self.name}` any more"
        if self.parameters is not None and callable(found):
            # Ray adds one of its own where it traces an actor's methods.
            ignored = ("self", "_ray_trace_ctx")
            own = tuple(n for n in inspect.signature(found).parameters if n not in ignored)
            if own != self.parameters:
                return f"{self.owner}.{self.name} takes {own}, not {self.parameters}"
        return None


_ALGORITHM = "ray.rllib.algorithms.algorithm:Algorithm"
_CONFIG = "ray.rllib.algorithms.algorithm_config:AlgorithmConfig"
_ENV_RUNNER = "ray.rllib.env.single_agent_env_runner:SingleAgentEnvRunner"
_FILTER = "ray.rllib.connectors.env_to_module.mean_std_filter:MeanStdFilter"
_LEARNER = "ray.rllib.core.learner.learner:Learner"
_LEARNER_GROUP = "ray.rllib.core.learner.learner_group:LearnerGroup"
_TORCH_LEARNER = "ray.rllib.core.learner.torch.torch_learner:TorchLearner"
_TORCH_MODULE = "torch.nn.modules.module:Module"
_TRAINABLE = "ray.tune.trainable.trainable:Trainable"

NAMES: tuple[PrivateName, ...] = (
    # The command
    PrivateName(
        "ray._private.services",
        "ConsolePopen",
        "Ray's processes in sessions of their own; can go when Ray keeps SIGTERM from them",
    ),
    PrivateName(
        "ray._private.worker",
        "_global_node",
        "whether Ray's control process lives, and its end where it cannot be asked any more",
    ),
    *(
        PrivateName(
            "ray.tune.execution.tune_controller:TuneController",
            name,
            "what a resumed experiment is not to carry out; can go when Tune does not save it",
        )
        for name in ("_cached_trial_decisions", "_queued_trial_decisions")
    ),
    PrivateName(
        "ray.tune.execution.tune_controller:TuneController",
        "__setstate__",
        "likewise",
        ("state",),
    ),
    PrivateName("ray._private.node:Node", "dead_processes", "likewise", ()),
    PrivateName("ray._private.node:Node", "live_processes", "likewise", ()),
    PrivateName(
        "ray._private.node:Node",
        "kill_all_processes",
        "likewise",
        ("check_alive", "allow_graceful", "wait"),
    ),
    PrivateName(
        "ray._private.node:Node",
        "get_gcs_client",
        "whether the control process of a cluster that was joined answers",
        (),
    ),
    PrivateName("ray._raylet:InnerGcsClient", "internal_kv_get", "likewise"),
    # Driver: package, algorithm, config, validation, tuning
    PrivateName(
        "ray.tune.registry",
        "_global_registry",
        "names of environments and algorithms; `register_trainable` imports what it registers",
    ),
    PrivateName(
        _ENV_RUNNER,
        "_module_to_env",
        "likewise",
    ),
    PrivateName(
        _ALGORITHM,
        "_run_one_evaluation",
        "`evaluate()` with the care for failed env runners around it, for the first round",
        ("parallel_train_future",),
    ),
    PrivateName(
        _ALGORITHM,
        "_evaluate_with_auto_duration",
        "overridden: a round that is shorter than an episode of evaluation reports one",
        ("parallel_train_future",),
    ),
    PrivateName(
        _ALGORITHM,
        "_counters",
        "RLlib counts restored env runners there",
    ),
    PrivateName(
        _TRAINABLE,
        "_storage",
        "where the trial's folder lies; no public access",
    ),
    PrivateName(
        _TRAINABLE,
        "_trial_info",
        "`reset_config` starts over with it",
    ),
    PrivateName(
        _CONFIG,
        "_train_batch_size_per_learner",
        "the public property divides `train_batch_size` where it is not set",
    ),
    PrivateName(_CONFIG, "_torch_grad_scaler_class", "refused with per-worker parameters"),
    PrivateName(
        _CONFIG,
        "_dont_auto_sync_env_runner_states",
        "a round's request carries all state; RLlib's own broadcast may lag",
    ),
    PrivateName(_CONFIG, "_validate_config", "False turns problems into warnings"),
    *(
        PrivateName(
            "ray.experimental.internal_kv",
            name,
            "credentials of a storage's URI reach the workers without being written to a file",
            parameters,
        )
        for name, parameters in (
            ("_internal_kv_get", ("key", "namespace")),
            ("_internal_kv_put", ("key", "value", "overwrite", "namespace")),
            ("_internal_kv_initialized", ()),
        )
    ),
    # sampling, fault_tolerance
    PrivateName(
        _ENV_RUNNER,
        "_sample",
        "overridden: the fast path, and whole episodes per sub-environment",
        ("num_timesteps", "num_episodes", "explore", "random_actions", "force_reset"),
    ),
    PrivateName(
        _ENV_RUNNER,
        "_new_episode",
        "overridden: episodes carry their worker",
        ("env_index", "episodes"),
    ),
    PrivateName(
        _ENV_RUNNER,
        "_try_env_reset",
        "overridden: counted seeds instead of RLlib's overlapping ones",
        ("seed", "options"),
    ),
    PrivateName(_ENV_RUNNER, "_callbacks", "`make_env` calls `on_environment_created`"),
    PrivateName(_ENV_RUNNER, "_device", "the fast path computes there"),
    PrivateName(_ENV_RUNNER, "_env_to_module", "observation filters and the module's space"),
    PrivateName(_ENV_RUNNER, "_needs_initial_reset", "the fast path and RLlib's loop take turns"),
    PrivateName(_ENV_RUNNER, "_ongoing_episodes", "uncut episodes go on in the next call"),
    PrivateName(_ENV_RUNNER, "_weights_seq_no", "the version of the weights that act"),
    PrivateName(_ENV_RUNNER, "_done_episodes_for_metrics", "metrics of the fast path"),
    PrivateName(_ENV_RUNNER, "_ongoing_episodes_for_metrics", "metrics of the fast path"),
    PrivateName(
        _ENV_RUNNER,
        "_increase_sampled_metrics",
        "metrics of the fast path",
        ("num_steps", "num_episodes_completed"),
    ),
    *(
        PrivateName(
            "ray.rllib.env.single_agent_episode:SingleAgentEpisode",
            name,
            "an episode that is made from arrays says how long it took",
        )
        for name in ("_start_time", "_last_step_time")
    ),
    PrivateName(_CONFIG, "_env_to_module_connector", "whether the user has connectors there"),
    PrivateName(_CONFIG, "_module_to_env_connector", "whether the user has connectors there"),
    PrivateName(_FILTER, "_filters", "the fast path filters observations without episodes"),
    PrivateName(_FILTER, "_init_new_filters", "likewise", ()),
    PrivateName(_FILTER, "_update_stats", "likewise; False for a loaded policy"),
    PrivateName("ray._common.deprecation", "logger", "RLlib warns of its own call at every module"),
    PrivateName(
        "ray.rllib.core.rl_module.torch.torch_rl_module:TorchRLModule",
        "_forward_exploration",
        "on the instance of a compiled module, whose layers must not be called one by one",
        ("batch", "kwargs"),
    ),
    PrivateName(
        "gymnasium.vector:SyncVectorEnv",
        "_autoreset_envs",
        "the fast path steps its sub-environments without it",
    ),
    PrivateName(
        "ray.rllib.env.env_runner_group:EnvRunnerGroup",
        "_worker_manager",
        "asking lost env runners without waiting for them, and killing those that hang",
    ),
    PrivateName(
        "ray.rllib.env.env_runner_group:EnvRunnerGroup",
        "_num_env_runners_dropped_lifetime",
        "RLlib's metric of what came too late; the calls of a round are our own",
    ),
    # cli
    *(
        PrivateName(
            "ray.tune.logger.csv:CSVLoggerCallback",
            name,
            "progress.csv of a resumed trial keeps its columns; can go once Tune's logger reads "
            "the header of a file that it continues",
        )
        for name in ("_setup_trial", "_trial_continue", "_trial_csv", "_trial_files")
    ),
    # core, learning
    *(
        PrivateName(
            "ray.rllib.algorithms.ppo.torch.default_ppo_torch_rl_module:DefaultPPOTorchRLModule",
            name,
            "overridden: observations become floats",
            ("batch", "kwargs"),
        )
        for name in ("_forward", "_forward_train")
    ),
    PrivateName(
        _TORCH_MODULE,
        "_parameters",
        "computing with other tensors in place of parameters: `torch.func.functional_call` writes "
        "into it as well, but only for `forward`, which RLlib does not call",
    ),
    PrivateName(_TORCH_MODULE, "_forward_hooks", "a module with hooks is called, not read"),
    PrivateName(_TORCH_MODULE, "_forward_pre_hooks", "a module with hooks is called, not read"),
    PrivateName(
        _LEARNER, "_learner_connector", "GAE per worker, and whether columns can stand in for it"
    ),
    PrivateName(_LEARNER, "_is_built", "`build` of a subclass may be called twice"),
    PrivateName(_LEARNER, "_check_is_built", "`update` is overridden as a whole", ("error",)),
    PrivateName(_LEARNER, "_device", "where columns go"),
    PrivateName(_LEARNER, "_params", "one all-reduce over the gradients of all parameters"),
    PrivateName(_LEARNER, "_weights_seq_no", "it counts the rounds; an older state must load too"),
    PrivateName(_LEARNER, "_optimizer_lr_schedules", "a mutated learning rate holds at once"),
    PrivateName(
        _TORCH_LEARNER,
        "_set_optimizer_lr",
        "a mutated learning rate holds at once",
        ("optimizer", "lr"),
    ),
    PrivateName(_TORCH_LEARNER, "_lr_schedulers", "torch's schedulers keep their own rate"),
    PrivateName(_TORCH_LEARNER, "_grad_scalers", "mixed precision expects infinite gradients"),
    PrivateName(
        _TORCH_LEARNER,
        "_make_modules_ddp_if_necessary",
        "overridden: learners sum weighted gradients once per step, instead of DDP's averages; can "
        "go when RLlib has a setting for it",
        (),
    ),
    PrivateName(
        "ray.rllib.algorithms.ppo.torch.ppo_torch_learner:PPOTorchLearner",
        "_update_module_kl_coeff",
        "overridden: a round without a step has no KL divergence",
        ("module_id", "config", "kl_loss"),
    ),
    PrivateName(
        "ray.rllib.algorithms.algorithm_config:AlgorithmConfig",
        "_torch_lr_scheduler_classes",
        "steps in closed form do not call them",
    ),
    PrivateName(_LEARNER_GROUP, "_learner", "the local learner: its update's result"),
    PrivateName(
        _LEARNER_GROUP, "_workers", "remote learners: RLlib waits half an hour for a dead one"
    ),
    PrivateName(
        _LEARNER_GROUP,
        "_worker_manager",
        "a learner that could not write a checkpoint learns on; can go when RLlib raises its error",
    ),
    PrivateName(_LEARNER_GROUP, "_module_spec", "what the learners were built with"),
)


@pytest.mark.parametrize("private", NAMES, ids=lambda private: f"{private.owner}.{private.name}")
def test_a_private_name_is_as_it_was(private: PrivateName) -> None:
    problem = private.problem()
    assert problem is None, (
        f"Ray {ray.__version__}, gymnasium {gymnasium.__version__}: {problem}. "
        f"It is needed for: {private.reason}"
    )


def test_a_name_that_is_gone_is_noticed() -> None:
    gone = PrivateName("ray.rllib.algorithms.algorithm:Algorithm", "_not_there", "nothing")
    assert "has no `_not_there` any more" in str(gone.problem())


def test_a_class_that_is_gone_is_noticed() -> None:
    gone = PrivateName("ray.rllib.algorithms.algorithm:NotThere", "_x", "nothing")
    assert "NotThere is gone" in str(gone.problem())


def test_other_parameters_are_noticed() -> None:
    other = PrivateName("ray.rllib.algorithms.algorithm:Algorithm", "step", "nothing", ("x",))
    assert "takes (), not ('x',)" in str(other.problem())
