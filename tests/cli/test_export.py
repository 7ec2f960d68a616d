"""Exported policies act as the checkpoint does, filters and action transforms included."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.algorithms.ppo.torch.default_ppo_torch_rl_module import DefaultPPOTorchRLModule
from ray.rllib.connectors.env_to_module import MeanStdFilter
from ray.rllib.core.rl_module.rl_module import RLModuleSpec

from rllib_weighted import load_policy
from rllib_weighted.cli import InputError, TrainingError, export
from rllib_weighted.cli.export import export_policy
from tests.checkpoints import BOX, recorded, recorded_config, write_checkpoint
from tests.cli.test_main import failed, rllib

DISCRETE = gym.spaces.Discrete(4, start=3)
MULTI = gym.spaces.MultiDiscrete([3, 4])
UNSQUASHED = {"normalize_actions": True}
CLIPPED = {"normalize_actions": False, "clip_actions": True}
RAW = {"normalize_actions": False, "clip_actions": False}


def run_onnx(file: Path, observations: Any) -> Any:
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return session.run(None, {"obs": observations})[0]


def run_torchscript(file: Path, observations: Any) -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit.load` is deprecated", DeprecationWarning)
        return torch.jit.load(file)(torch.as_tensor(observations)).numpy()


FORMATS = {"onnx": run_onnx, "torchscript": run_torchscript}


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(
    ("actions", "scale"),
    [(BOX, UNSQUASHED), (BOX, CLIPPED), (BOX, RAW), (DISCRETE, UNSQUASHED), (MULTI, UNSQUASHED)],
    ids=["unsquashed", "clipped", "raw", "discrete", "multi-discrete"],
)
def test_acts_as_the_env_runner(
    tmp_path: Path, kind: str, actions: Any, scale: dict[str, bool]
) -> None:
    checkpoint = tmp_path / "checkpoint"
    runner = write_checkpoint(checkpoint, recorded_config(actions).environment(**scale))
    file = tmp_path / "new" / f"policy.{kind}"
    result = export_policy(checkpoint, **{kind: file})
    steps = recorded(runner, explore=False)
    found = FORMATS[kind](file, np.stack([obs for obs, _ in steps]))
    np.testing.assert_allclose(found, np.stack([action for _, action in steps]), atol=1e-5)
    assert result.differences[file] <= 1e-5
    assert (result.obs_shape, result.action_shape) == ((3,), actions.shape)


def test_both_files_at_once_and_any_batch(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, recorded_config())
    files = [tmp_path / "policy.onnx", tmp_path / "policy.pt"]
    result = export_policy(tmp_path, onnx=files[0], torchscript=files[1])
    assert result.files == files
    for size in (1, 7):
        observations = np.zeros((size, 3), np.float32)
        assert run_onnx(files[0], observations).shape == (size, 2)
        assert run_torchscript(files[1], observations).shape == (size, 2)


@pytest.mark.slow
def test_images(tmp_path: Path) -> None:
    """Convolutions, and observations of bytes, which the module scales."""

    class Images(gym.Env[Any, Any]):
        def __init__(self, config: Any) -> None:
            pass

        observation_space = gym.spaces.Box(0, 255, (42, 42, 1), np.uint8)
        action_space = gym.spaces.Discrete(3)

        def reset(self, **kwargs: Any) -> Any:
            return self.observation_space.sample(), {}

        def step(self, action: Any) -> Any:
            return self.observation_space.sample(), 0.0, True, False, {}

    config = recorded_config(env_to_module_connector=None).environment(Images, env_config={})
    filters = {"conv_filters": [[4, 4, 2], [8, 21, 21]]}
    config.rl_module(model_config=filters, observation_scale=1 / 255)
    write_checkpoint(tmp_path, config)
    result = export_policy(tmp_path, onnx=tmp_path / "a", torchscript=tmp_path / "b")
    assert max(result.differences.values()) <= 1e-3
    images = np.stack([Images.observation_space.sample() for _ in range(20)])
    expected = [load_policy(tmp_path)(image) for image in images]
    assert run_onnx(tmp_path / "a", images).tolist() == expected


def test_without_the_filter_it_would_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: the check sees a wrong export, and the file goes."""
    write_checkpoint(tmp_path, recorded_config())
    monkeypatch.setattr(export, "_filter", lambda connector: torch.nn.Identity())
    file = tmp_path / "policy.pt"
    with pytest.raises(TrainingError, match=r"should act as the checkpoint does, but differs by"):
        export_policy(tmp_path, torchscript=file)
    assert not file.exists()


def test_a_discrete_choice_that_is_wrong_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(tmp_path, recorded_config(DISCRETE))
    monkeypatch.setattr(export, "_chosen", lambda policy: lambda inputs: inputs.argmin(-1))
    with pytest.raises(TrainingError, match="differs by 1 on 1000 observations"):
        export_policy(tmp_path, torchscript=tmp_path / "policy.pt")


class OwnForward(DefaultPPOTorchRLModule):
    def _forward(self, batch: Any, **kwargs: Any) -> Any:
        return super()._forward(batch, **kwargs)


class OwnFilter(MeanStdFilter):
    pass


def with_own_filter(env: Any, spaces: Any, device: Any) -> Any:
    return OwnFilter()


@pytest.mark.slow
def test_what_cannot_be_exported_says_which_part(tmp_path: Path) -> None:
    own_module = recorded_config()
    own_module.rl_module(rl_module_spec=RLModuleSpec(module_class=OwnForward))
    recurrent = recorded_config(env_to_module_connector=None)
    recurrent.rl_module(model_config={"use_lstm": True, "lstm_cell_size": 8, "max_seq_len": 4})
    own_connector = recorded_config(env_to_module_connector=with_own_filter)
    cases = {
        "forward pass is a custom one: OwnForward overrides `_forward`": own_module,
        "its module is a recurrent one": recurrent,
        "its connector OwnFilter is a custom one": own_connector,
    }
    for i, (message, config) in enumerate(cases.items()):
        folder = tmp_path / str(i)
        write_checkpoint(folder, config)
        with pytest.raises(InputError, match=message):
            export_policy(folder, torchscript=tmp_path / "policy.pt")
        load_policy(folder)(np.zeros(3))  # As the message says.
    assert not (tmp_path / "policy.pt").exists()


def test_a_network_that_cannot_be_traced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checkpoint(tmp_path, recorded_config())

    def refuse(*args: Any) -> None:
        raise RuntimeError("data-dependent branch\nand more")

    monkeypatch.setattr(torch.jit, "trace", refuse)
    with pytest.raises(InputError, match=r"\(TorchActorCriticEncoder, TorchMLPHead\): data-dep"):
        export_policy(tmp_path, torchscript=tmp_path / "policy.pt")


def test_bad_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "say what to write: --onnx FILE" in failed(rllib("export", tmp_path))
    target = tmp_path / "there"
    target.touch()
    message = failed(rllib("export", tmp_path, "--torchscript", target))
    assert "exists already: remove it" in message
    folder = tmp_path / "empty"
    folder.mkdir()
    assert "is no checkpoint" in failed(rllib("export", folder, "--torchscript", tmp_path / "x"))
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None)
    message = failed(rllib("export", folder, "--onnx", tmp_path / "x"))
    assert 'pip install "rllib-weighted[onnx]"' in message


def test_the_command_says_what_it_wrote(tmp_path: Path) -> None:
    checkpoint = tmp_path / "trial" / "checkpoint_000000"
    write_checkpoint(checkpoint, recorded_config())
    file = tmp_path / "policy.pt"
    result = rllib("export", checkpoint.parent, "--torchscript", file)
    assert result.exit_code == 0, result.output
    assert f"checkpoint   {checkpoint}" in result.stdout
    assert "input        obs [batch, 3] float32" in result.stdout
    assert "output       action [batch, 2]" in result.stdout
    assert f"written      {file} (differs by" in result.stdout
