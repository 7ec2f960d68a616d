"""One training run of one contender, in a process of its own; prints its rounds as JSON.

    python benchmarks/contenders.py CONTENDER ENVIRONMENT [--seconds 8]

All contenders train PPO with the same settings: 16 sub-environments, batches of 4096 steps,
minibatches of 256, 10 epochs (160 optimizer steps a round), separate 64-64 tanh networks for policy
and value, gradients clipped to norm 0.5, no KL term, no normalisation of observations or rewards.
RLlib and this package sample with two env runners of 8 sub-environments; this package merges 16
workers (`merge_unit="env"`), with EnvPool in the row that says so. The first rounds are start-up
and are not counted.

Pong is gymnasium's ALE in grey, 84 x 84, four frames stacked; its network is that of the DQN paper,
shared by policy and value, its batches are of 2048 steps, with 4 epochs. "frames" is the same with
random frames that cost nothing (frames.py). Their rounds take long: one is start-up, two count.

CleanRL's files run as they are, from the checkout that the variable CLEANRL names, with the Python
that CLEANRL_PYTHON names: it has gymnasium 0.29, tyro and tensorboard, mujoco for HalfCheetah,
ale-py 0.10 and Stable-Baselines3 for Pong, gym 0.23 and envpool 0.8 for Pong on EnvPool. Settings
that have no option are its own. Sample Factory runs with the Python that SAMPLE_FACTORY_PYTHON
names (sample_factory_peer.py); one will do for both. gymnasium 0.29 has other versions of two
environments (OLDER_IDS), with the same physics.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import deque
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer

NUM_ENVS, NUM_ENV_RUNNERS = 16, 2
BATCH, MINIBATCH, EPOCHS = 4096, 256, 10
OURS = ("average", "reward_weighted", "loss_weighted", "actor_average")
ON_ENVPOOL = "average on EnvPool"
RLLIB, SB3_ONE, SB3_MANY = "rllib", "sb3 in one process", "sb3 in subprocesses"
CLEANRL, CLEANRL_ENVPOOL = "cleanrl", "cleanrl on EnvPool"
SAMPLE_FACTORY = "sample factory"
PEERS = (CLEANRL, CLEANRL_ENVPOOL, SAMPLE_FACTORY)  # Each in an environment of its own.
CONTENDERS = (*OURS, ON_ENVPOOL, RLLIB, SB3_ONE, SB3_MANY, *PEERS)
PONG, FRAMES = "Pong-v5", "frames"
IMAGES = (PONG, FRAMES)
DQN_FILTERS = [[32, 8, 4, "valid"], [64, 4, 2, "valid"], [64, 3, 1, "valid"], [512, 7, 1, "valid"]]
"""The network of the DQN paper: the last one takes all that is left, as its dense layer does."""
OLDER_IDS = {"LunarLander-v3": "LunarLander-v2", "HalfCheetah-v5": "HalfCheetah-v4"}
"""What gymnasium 0.29 has, which the peers of `PEERS` want."""
CLEANRL_FILES = {  # (environment is Pong, actions are continuous) -> file
    (False, False): "ppo.py",
    (False, True): "ppo_continuous_action.py",
    (True, False): "ppo_atari.py",
}


def resident_mib(pid: int | str = "self") -> float:
    """Returns the resident memory of a process in MiB."""
    with open(f"/proc/{pid}/status") as status:
        line = next(line for line in status if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def runs_on(contender: str, environment: str) -> bool:
    """Whether a contender has an environment."""
    if contender == CLEANRL_ENVPOOL:
        return environment == PONG
    if contender == SAMPLE_FACTORY:
        return environment not in IMAGES
    return environment != FRAMES or contender not in (ON_ENVPOOL, CLEANRL)


def batch_and_epochs(environment: str) -> tuple[int, int]:
    """Returns the steps of a round and its epochs."""
    return (2048, 4) if environment in IMAGES else (BATCH, EPOCHS)


def rounds_to_count(environment: str) -> tuple[int, int]:
    """Returns how many rounds are start-up, and how many are counted at least."""
    return (1, 2) if environment in IMAGES else (2, 5)


def is_continuous(environment: str) -> bool:
    """Whether an environment's actions are."""
    import gymnasium as gym

    if environment in IMAGES:
        return False
    with closing(gym.make(environment)) as env:
        return isinstance(env.action_space, gym.spaces.Box)


def make_pong(context: Any = None) -> Any:
    """Returns gymnasium's Pong as EnvPool's is: grey, 84 x 84, four frames, channels last."""
    import gymnasium as gym

    env = gym.make("ale_py:ALE/Pong-v5", frameskip=1, repeat_action_probability=0.0)
    wrappers = gym.wrappers
    env = wrappers.FrameStackObservation(wrappers.AtariPreprocessing(env), 4)
    space = gym.spaces.Box(0, 255, (84, 84, 4), "uint8")
    return wrappers.TransformObservation(env, lambda obs: obs.transpose(1, 2, 0), space)


def make_frames(context: Any = None) -> Any:
    """Returns the environment of random frames."""
    from frames import RandomFrames

    return RandomFrames(context)


MAKERS = {PONG: make_pong, FRAMES: make_frames}
"""What makes an environment that gymnasium does not make by its name."""


def rllib_model(environment: str) -> Any:
    """Returns the networks as RLlib's model config."""
    from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

    if environment in IMAGES:
        return DefaultModelConfig(conv_filters=DQN_FILTERS, vf_share_layers=True)
    return DefaultModelConfig(
        fcnet_hiddens=[64, 64],
        vf_share_layers=False,  # As Stable-Baselines3; RLlib shares them unasked.
        free_log_std=is_continuous(environment),
    )


def rllib_config(contender: str, environment: str) -> Any:
    """Returns the config of stock RLlib's PPO, or of this package with a merge strategy."""
    from ray.rllib.algorithms.ppo import PPOConfig
    from ray.tune import register_env

    batch, epochs = batch_and_epochs(environment)
    if contender == RLLIB:
        config = PPOConfig().training(train_batch_size_per_learner=batch)
        if environment in IMAGES:  # Its encoders take no whole numbers.
            config.env_runners(env_to_module_connector=as_floats)
    else:
        from rllib_weighted import WeightedPPOConfig

        strategy = "average" if contender == ON_ENVPOOL else contender
        config = WeightedPPOConfig().training(
            train_batch_size=batch, merge_strategy=strategy, merge_unit="env"
        )
        if environment in IMAGES:
            config.rl_module(observation_scale=1 / 255)
    name = environment
    if contender == ON_ENVPOOL:
        name = f"envpool:{environment}"
    elif environment in MAKERS:
        register_env(environment, MAKERS[environment])
    return (
        config.environment(name)
        .env_runners(
            num_env_runners=NUM_ENV_RUNNERS,
            num_envs_per_env_runner=NUM_ENVS // NUM_ENV_RUNNERS,
            num_cpus_per_env_runner=0.5,
        )
        .training(
            minibatch_size=MINIBATCH,
            num_epochs=epochs,
            lr=3e-4,
            vf_loss_coeff=0.5,
            vf_clip_param=1e4,
            use_kl_loss=False,
            clip_param=0.2,
            grad_clip=0.5,
            grad_clip_by="global_norm",
        )
        .rl_module(model_config=rllib_model(environment))
        .debugging(seed=0)
    )


def as_floats(env: Any, spaces: Any, device: Any) -> Any:
    """Makes floats from 0 to 1 of images, for stock RLlib."""
    from ray.rllib.connectors.env_to_module.observation_preprocessor import (
        SingleAgentObservationPreprocessor,
    )

    class Floats(SingleAgentObservationPreprocessor):
        def recompute_output_observation_space(self, observations: Any, actions: Any) -> Any:
            import gymnasium as gym

            return gym.spaces.Box(0.0, 1.0, observations.shape, "float32")

        def preprocess(self, observation: Any, episode: Any) -> Any:
            return observation.astype("float32") / 255

    return Floats()


def rllib_rounds(contender: str, environment: str, facts: dict[str, Any]) -> Iterator[int]:
    """Trains with RLlib; yields the environment steps of each round."""
    import ray

    ray.init(include_dashboard=False, log_to_driver=False, configure_logging=False)
    algorithm = rllib_config(contender, environment).build_algo()
    sampled = 0
    try:
        while True:
            result = algorithm.train()
            lifetime = int(result["env_runners"]["num_env_steps_sampled_lifetime"])
            if not sampled:
                pids = algorithm.env_runner_group.foreach_env_runner(
                    lambda _: os.getpid(), local_env_runner=False
                )
                facts["env_runner_mib"] = max(map(resident_mib, pids))
            yield lifetime - sampled
            sampled = lifetime
    finally:
        algorithm.stop()
        ray.shutdown()


def sb3_rounds(contender: str, environment: str, facts: dict[str, Any]) -> Iterator[int]:
    """Trains with Stable-Baselines3; yields the environment steps of each round."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

    has_images = environment in IMAGES
    batch, epochs = batch_and_epochs(environment)
    kind = SubprocVecEnv if contender == SB3_MANY else DummyVecEnv
    vector = make_vec_env(
        MAKERS.get(environment, environment), n_envs=NUM_ENVS, seed=0, vec_env_cls=kind
    )
    model = PPO(
        "CnnPolicy" if has_images else "MlpPolicy",  # Scales images, and turns them around, itself.
        vector,
        n_steps=batch // NUM_ENVS,
        batch_size=MINIBATCH,
        n_epochs=epochs,
        policy_kwargs={} if has_images else {"net_arch": [64, 64]},
        seed=0,
        device="cpu",
    )
    try:
        while True:
            model.learn(total_timesteps=batch, reset_num_timesteps=False)
            yield batch
    finally:
        vector.close()


def cleanrl_command(contender: str, environment: str) -> list[str]:
    """Returns what runs one of CleanRL's files with the settings of all.

    Raises:
        typer.BadParameter: There is no checkout, or it has no such file.
    """
    checkout = Path(os.environ.get("CLEANRL", ""))
    name = CLEANRL_FILES[environment == PONG, is_continuous(environment)]
    if contender == CLEANRL_ENVPOOL:
        name = "ppo_atari_envpool.py"
    file = checkout / "cleanrl" / name
    if not os.environ.get("CLEANRL") or not file.is_file():
        raise typer.BadParameter(
            f"CLEANRL should name a checkout of CleanRL with cleanrl/{name}, found {checkout}"
        )
    batch, epochs = batch_and_epochs(environment)
    env_id = OLDER_IDS.get(environment, environment)
    if contender == CLEANRL and environment == PONG:
        env_id = "ale_py:ALE/Pong-v5"
    options = {
        "env-id": env_id,
        "num-envs": NUM_ENVS,
        "num-steps": batch // NUM_ENVS,
        "num-minibatches": batch // MINIBATCH,
        "update-epochs": epochs,
        "learning-rate": 3e-4,
        "total-timesteps": 10**9,
    }
    python = os.environ.get("CLEANRL_PYTHON", sys.executable)
    given = [text for key, value in options.items() for text in (f"--{key}", str(value))]
    return [python, "-u", str(file.resolve()), *given, "--no-cuda", "--no-anneal-lr"]


def cleanrl_rounds(contender: str, environment: str, facts: dict[str, Any]) -> Iterator[int]:
    """Trains with CleanRL; yields the environment steps of each round."""
    batch, _ = batch_and_epochs(environment)
    command = cleanrl_command(contender, environment)
    variables = {"PYTHONPATH": str(Path(os.environ["CLEANRL"]).resolve())}
    with tempfile.TemporaryDirectory() as folder:  # It writes `runs/` where it runs.
        for line in lines_of(command, folder, variables):
            if line.startswith("SPS:"):  # Once a round.
                yield batch


def sample_factory_rounds(contender: str, environment: str, facts: dict[str, Any]) -> Iterator[int]:
    """Trains with Sample Factory; yields the environment steps of each round.

    Raises:
        typer.BadParameter: No Python is named that has it.
    """
    python = os.environ.get("SAMPLE_FACTORY_PYTHON")
    if not python:
        raise typer.BadParameter(
            f"SAMPLE_FACTORY_PYTHON should name a Python with {contender}; it is not set"
        )
    script = Path(__file__).with_name("sample_factory_peer.py")
    batch, epochs = batch_and_epochs(environment)
    numbers = map(str, (NUM_ENVS, batch, MINIBATCH, epochs))
    sampled = 0
    with tempfile.TemporaryDirectory() as folder:
        env_id = OLDER_IDS.get(environment, environment)
        command = [python, "-u", str(script), env_id, *numbers, folder]
        for line in lines_of(command, folder, {}):
            name, _, number = line.partition(" ")
            if name == "STEPS" and int(number) > sampled:
                yield int(number) - sampled
                sampled = int(number)


def lines_of(command: list[str], folder: str, variables: dict[str, str]) -> Iterator[str]:
    """Runs a peer's program in a folder; yields its lines, and ends it with all its processes.

    Raises:
        RuntimeError: It ended by itself; with its last lines.
    """
    with subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as running:
        last: deque[str] = deque(maxlen=20)
        try:
            for line in running.stdout or ():
                last.append(line)
                yield line
            raise RuntimeError(f"{command[0]} ended by itself:\n" + "".join(last))
        finally:
            os.killpg(running.pid, signal.SIGKILL)


def rounds_of(contender: str, environment: str, facts: dict[str, Any]) -> Iterator[int]:
    """Trains with a contender; yields the environment steps of each round."""
    if contender.startswith("sb3"):
        return sb3_rounds(contender, environment, facts)
    if contender == SAMPLE_FACTORY:
        return sample_factory_rounds(contender, environment, facts)
    if contender in PEERS:
        return cleanrl_rounds(contender, environment, facts)
    return rllib_rounds(contender, environment, facts)


def main(
    contender: Annotated[str, typer.Argument(help=f"One of {', '.join(CONTENDERS)}.")],
    environment: Annotated[str, typer.Argument(help="A gymnasium id.")],
    seconds: Annotated[float, typer.Option(help="How long to measure.")] = 8.0,
    threads: Annotated[int, typer.Option(help="torch threads; 0: its own choice.")] = 0,
) -> None:
    """Runs one contender and prints seconds and steps of its rounds as one line of JSON."""
    if not runs_on(contender, environment):
        raise typer.BadParameter(f"{contender} does not have {environment}")
    started = time.time()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    import torch

    if threads:
        torch.set_num_threads(threads)
    facts: dict[str, Any] = {"contender": contender, "environment": environment}
    num_start_up, num_counted = rounds_to_count(environment)
    rounds: list[tuple[int, float]] = []
    total = 0.0
    with closing(rounds_of(contender, environment, facts)) as running:
        before = time.perf_counter()
        for number, steps in enumerate(running):
            now = time.perf_counter()
            if number == 0:
                facts["first_round_s"] = time.time() - started
            elif number >= num_start_up:
                rounds.append((steps, now - before))
                total += now - before
            if total >= seconds and len(rounds) >= num_counted:
                break
            before = time.perf_counter()
    print(json.dumps({**facts, "rounds": rounds, "threads": torch.get_num_threads()}))


if __name__ == "__main__":
    typer.run(main)
