"""Writes a checkpoint's policy as ONNX or TorchScript, and checks it; the verb `export`."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rllib_weighted.cli import InputError, TrainingError
from rllib_weighted.cli.checkpoints import find_checkpoint
from rllib_weighted.cli.cluster import quiet_ray
from rllib_weighted.core.eligibility import Requirement, first_reason, required
from rllib_weighted.core.redaction import redact
from rllib_weighted.text import html_table, short_path

if TYPE_CHECKING:
    from torch import Tensor, nn

    from rllib_weighted.policy import Policy

NUM_CHECKED = 1000
TOLERANCE = 1e-5
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_SEED = 0  # Of the observations that an exported policy is checked on.

# Torch and RLlib are imported inside functions: the command starts without them.


@dataclass(frozen=True)
class ExportResult:
    """What was written, and how well it agrees with the policy.

    Args:
        checkpoint: The exported checkpoint: a local folder or a URI.
        files: The files written.
        obs_shape: Shape of one observation. The input is a batch of them, [batch, *shape].
        obs_dtype: Their type.
        action_shape: Shape of one action. The output is [batch, *shape].
        differences: File -> over `NUM_CHECKED` observations, the largest difference from the
            policy's actions, relative to those above 1; of discrete ones, the share that differs.
    """

    checkpoint: str
    files: list[Path]
    obs_shape: tuple[int, ...]
    obs_dtype: str
    action_shape: tuple[int, ...]
    differences: dict[Path, float]

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        rows = [
            ("checkpoint", short_path(redact(self.checkpoint))),
            ("input", f"obs [batch, *{list(self.obs_shape)}] {self.obs_dtype}"),
            ("output", f"action [batch, *{list(self.action_shape)}]"),
        ]
        for path, difference in self.differences.items():
            checked = f"differs by {difference:.1g} at most over {NUM_CHECKED:,} observations"
            rows.append(("written", f"{short_path(path)} ({checked})"))
        return html_table((), rows)


def export_policy(
    checkpoint: str | Path,
    *,
    onnx: str | Path | None = None,
    torchscript: str | Path | None = None,
    verbose: bool = False,
) -> ExportResult:
    """Writes the deterministic policy of a checkpoint, from observations to environment actions.

    The statistics of filters and the clipping or unsquashing of actions are part of it. What was
    written is read back and compared with `load_policy` on `NUM_CHECKED` observations.

    Args:
        checkpoint: A checkpoint, or the folder of a trial or experiment: see `find_checkpoint`.
            A local path, or a URI.
        onnx: The ONNX file to write; needs the extra `onnx`.
        torchscript: The TorchScript file to write.
        verbose: Shows the exporters' messages.

    Raises:
        InputError: There is no checkpoint, it cannot be exported, or a file exists already.
        TrainingError: What was written acts otherwise than the policy does; the file is removed.
    """
    files = {
        Path(file).expanduser().resolve(): write
        for file, write in ((onnx, _write_onnx), (torchscript, _write_torchscript))
        if file is not None
    }
    _check_files(files, needs_onnx=onnx is not None)
    location = find_checkpoint(checkpoint)
    with quiet_ray(verbose), contextlib.nullcontext() if verbose else _quiet():
        from rllib_weighted.policy import load_policy

        try:
            policy = load_policy(location)
        except ValueError as error:
            raise InputError(str(error)) from error
        if reason := first_reason(exportable(), policy):
            raise InputError(
                f"{location} cannot be exported: {reason}. `rllib_weighted.load_policy` takes any"
            )
        module = _as_module(policy)
        observations = _observations(policy)
        expected = np.stack([policy(obs) for obs in observations])
        differences = {}
        for file, write in files.items():
            file.parent.mkdir(parents=True, exist_ok=True)
            try:
                run = write(module, observations[:2], file)
            except Exception as error:  # Of any kind: tracing runs the network's own code.
                parts = f"{type(policy.module.encoder).__name__}, {type(policy.module.pi).__name__}"
                raise InputError(
                    f"{location} cannot be exported: torch cannot trace its networks ({parts}): "
                    f"{str(error).strip().splitlines()[0]}"
                ) from error
            differences[file] = _difference(run(observations), expected, file)
    space = policy.observation_space
    return ExportResult(
        checkpoint=location,
        files=list(files),
        obs_shape=tuple(space.shape or ()),
        obs_dtype=str(space.dtype),
        action_shape=tuple(policy.action_space.shape or ()),
        differences=differences,
    )


def _check_files(files: dict[Path, Any], *, needs_onnx: bool) -> None:
    if not files:
        raise InputError("say what to write: --onnx FILE, --torchscript FILE, or both")
    for file in files:
        if file.exists():
            raise InputError(f"{file} exists already: remove it, or name another file")
    missing = [name for name in _PACKAGES if needs_onnx and not importlib.util.find_spec(name)]
    if missing:
        raise InputError(
            f'--onnx needs {", ".join(missing)}: pip install "rllib-weighted[onnx]"; '
            "--torchscript needs nothing more"
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hides what the exporters log: ONNX's is chatty."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(disabled)


# What can be exported


def exportable() -> tuple[Requirement[Policy], ...]:
    """Returns what a policy needs to be exported, in order."""
    import gymnasium as gym
    from ray.rllib.algorithms.ppo.torch.default_ppo_torch_rl_module import DefaultPPOTorchRLModule

    from rllib_weighted.core.modules import user_override
    from rllib_weighted.policy import custom_connectors

    def custom_module(policy: Policy) -> str | None:
        cls = type(policy.module)
        if not issubclass(cls, DefaultPPOTorchRLModule):
            return f"its module {cls.__name__} is not one of RLlib's default PPO modules"
        override = user_override(cls, "forward_inference", "_forward_inference", "_forward")
        return f"its module's forward pass is a custom one: {override}" if override else None

    def custom_connector(policy: Policy) -> str | None:
        found = custom_connectors(policy.env_to_module) + custom_connectors(policy.module_to_env)
        return f"its connector {found[0]} is a custom one" if found else None

    def unknown_actions(policy: Policy) -> str | None:
        cls = policy.module.get_inference_action_dist_cls()
        name = _distribution(cls)
        return None if name else f"its action distribution {cls.__name__} is not a known one"

    return (
        required(
            "`Box` observations",
            lambda policy: isinstance(policy.observation_space, gym.spaces.Box),
            "its observations are not those of a `Box` space",
        ),
        Requirement("RLlib's connectors, and `MeanStdFilter` at most", custom_connector),
        Requirement("the forward pass of RLlib's default PPO module", custom_module),
        required(
            "a module without recurrent state",
            lambda policy: not policy.module.is_stateful(),
            "its module is a recurrent one, and its state would have to be carried along",
        ),
        Requirement("`Discrete`, `MultiDiscrete` or `Box` actions", unknown_actions),
    )


def _distribution(cls: Any) -> str | None:
    """Returns the name of one of RLlib's action distributions; None if it is of another kind."""
    from ray.rllib.core.distribution.torch import torch_distribution as known

    # RLlib makes a subclass of `TorchMultiCategorical` for each action space.
    for base in (known.TorchCategorical, known.TorchDiagGaussian):
        if cls is base:
            return base.__name__
    return "TorchMultiCategorical" if issubclass(cls, known.TorchMultiCategorical) else None


# The policy as one module


def _as_module(policy: Policy) -> nn.Module:
    """Returns the deterministic policy as a module: [batch, *shape] -> [batch, *shape]."""
    import torch
    from ray.rllib.connectors.env_to_module import MeanStdFilter
    from ray.rllib.core.columns import Columns
    from ray.rllib.core.models.base import ACTOR, ENCODER_OUT

    # Of a module that casts and scales what it reads; see `CastingPPOModule`.
    scale = getattr(policy.module, "observation_scale", 1.0)

    class ExportedPolicy(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = policy.module.encoder
            self.pi = policy.module.pi
            filters = [c for c in policy.env_to_module.connectors if isinstance(c, MeanStdFilter)]
            self.filters = torch.nn.ModuleList([_filter(each) for each in filters])
            self.choose = _chosen(policy)
            self.transform = _transform(policy)

        def forward(self, obs: Tensor) -> Tensor:
            for each in self.filters:
                obs = each(obs)
            features = self.encoder({Columns.OBS: obs.float() * scale})[ENCODER_OUT][ACTOR]
            return self.transform(self.choose(self.pi(features)))

    return ExportedPolicy().eval().requires_grad_(False)


def _statistics(connector: Any) -> tuple[dict[str, Any], Any]:
    """Returns the settings of a `MeanStdFilter`, as its state names them, and its statistics."""
    from ray.rllib.utils.filter import RunningStat

    (state,) = connector.get_state().values()
    (stats,) = state["running_stats"]
    return state, RunningStat.from_state(stats)


def _filter(connector: Any) -> nn.Module:
    """Returns a `MeanStdFilter` with the statistics that it has."""
    import torch
    from ray.rllib.utils.numpy import SMALL_NUMBER

    state, stats = _statistics(connector)
    clip = state["clip_by_value"] or None

    class Filter(torch.nn.Module):
        mean: Tensor
        scale: Tensor

        def __init__(self) -> None:
            super().__init__()
            # RLlib computes in float64 and goes back to the observation's type.
            mean = stats.mean if state["de_mean_to_zero"] else np.zeros_like(stats.mean)
            scale = stats.std + SMALL_NUMBER if state["de_std_to_one"] else np.ones_like(mean)
            self.register_buffer("mean", torch.as_tensor(mean, dtype=torch.float64))
            self.register_buffer("scale", torch.as_tensor(scale, dtype=torch.float64))

        def forward(self, obs: Tensor) -> Tensor:
            filtered = (obs.double() - self.mean) / self.scale
            if clip is not None:
                filtered = filtered.clamp(-clip, clip)
            return filtered.to(obs.dtype)

    return Filter()


def _chosen(policy: Policy) -> Callable[[Tensor], Tensor]:
    """Returns the distribution's inputs -> the most likely action, as the module scales it."""
    import torch

    kind = _distribution(policy.module.get_inference_action_dist_cls())
    if kind == "TorchCategorical":
        return lambda inputs: inputs.argmax(-1)
    if kind == "TorchDiagGaussian":
        return lambda inputs: inputs.chunk(2, dim=-1)[0]
    space: Any = policy.action_space  # `MultiDiscrete`.
    lengths = [int(size) for size in np.ravel(space.nvec)]
    return lambda inputs: torch.stack([x.argmax(-1) for x in inputs.split(lengths, dim=-1)], dim=-1)


def _transform(policy: Policy) -> nn.Module:
    """Returns what the connectors do to a batch of actions: `NormalizeAndClipActions`, or count."""
    import gymnasium as gym
    import torch
    from ray.rllib.connectors.module_to_env import NormalizeAndClipActions

    from rllib_weighted.core.actions import CountActions

    space: Any = policy.action_space
    if any(isinstance(c, CountActions) for c in policy.module_to_env.connectors):
        start = torch.as_tensor(space.start)

        class Counted(torch.nn.Module):
            def forward(self, actions: Tensor) -> Tensor:
                return actions + start

        return Counted()
    found = [c for c in policy.module_to_env.connectors if isinstance(c, NormalizeAndClipActions)]
    if not found or not isinstance(space, gym.spaces.Box):
        return torch.nn.Identity()
    is_bounded = bool(np.all(space.bounded_below) and np.all(space.bounded_above))
    unsquash = found[0].normalize_actions and is_bounded
    clip = unsquash or (found[0].clip_actions and not found[0].normalize_actions)

    class Transform(torch.nn.Module):
        low: Tensor
        high: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("low", torch.as_tensor(space.low))
            self.register_buffer("high", torch.as_tensor(space.high))

        def forward(self, actions: Tensor) -> Tensor:
            if unsquash:
                actions = self.low + (actions + 1.0) * (self.high - self.low) / 2.0
            return torch.clamp(actions, self.low, self.high) if clip else actions

    return Transform()


# Files


def _write_onnx(module: nn.Module, examples: Any, file: Path) -> Callable[[Any], Any]:
    """Writes an ONNX file, input `obs` and output `action`, and returns what runs it."""
    import torch

    batch = torch.export.Dim("batch")
    torch.onnx.export(
        module,
        (torch.as_tensor(examples),),
        file,
        dynamo=True,
        external_data=False,
        input_names=["obs"],
        output_names=["action"],
        dynamic_shapes={"obs": {0: batch}},
        verbose=False,
    )
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return lambda observations: session.run(["action"], {"obs": observations})[0]


def _write_torchscript(module: nn.Module, examples: Any, file: Path) -> Callable[[Any], Any]:
    """Writes a TorchScript file and returns what runs it."""
    import torch

    torch.jit.trace(module, torch.as_tensor(examples)).save(file)
    loaded = torch.jit.load(file)
    return lambda observations: loaded(torch.as_tensor(observations)).numpy()


# The check


def _observations(policy: Policy) -> Any:
    """Returns random observations, [NUM_CHECKED, *shape]; around a filter's mean, if any."""
    from ray.rllib.connectors.env_to_module import MeanStdFilter

    space: Any = policy.observation_space
    generator = np.random.default_rng(_SEED)
    shape = (NUM_CHECKED, *space.shape)
    if np.issubdtype(space.dtype, np.integer):
        return generator.integers(space.low, space.high, shape, space.dtype, endpoint=True)
    mean, std = 0.0, 1.0
    for connector in policy.env_to_module.connectors:
        if isinstance(connector, MeanStdFilter):
            _, stats = _statistics(connector)
            mean, std = stats.mean, stats.std
            break
    drawn = mean + 2 * std * generator.standard_normal(shape)
    return np.clip(drawn.astype(space.dtype), space.low, space.high)


def _difference(found: Any, expected: Any, file: Path) -> float:
    """Returns the largest difference of actions, [NUM_CHECKED, *shape].

    Of discrete actions, one in a thousand may differ: rounding decides between equal ones.

    Raises:
        TrainingError: They differ by more.
    """
    if found.shape != expected.shape:
        difference, allowed = float("inf"), TOLERANCE
    elif np.issubdtype(expected.dtype, np.integer):
        difference, allowed = float(np.mean(found != expected)), 1 / NUM_CHECKED
    else:
        difference = float(np.max(np.abs(found - expected) / np.maximum(1, np.abs(expected))))
        allowed = TOLERANCE
    if not difference <= allowed:  # NaN is no agreement either.
        file.unlink()
        raise TrainingError(
            f"what was written to {file} should act as the checkpoint does, but differs by "
            f"{difference:.2g} on {NUM_CHECKED} observations; the file was removed. "
            "`rllib_weighted.load_policy` acts as the checkpoint does"
        )
    return difference
