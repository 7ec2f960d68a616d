"""CartPole-v1 swept: merge strategies by minimum weights by seeds, 200,000 steps each.

Every arm gets the same seeds, so that arms can be compared seed by seed, and is evaluated every 25
rounds on seeds that training never sees. `average` and `sum` have no minimum weight: they are one
arm each. Three seeds show how it works; for a claim take ten or more.

Run it with `rllib train file tuned_examples/cartpole_sweep.py`, as a script, or as `param_space` of
a `tune.Tuner` of your own. `SWEEP_SEEDS=10` in front sweeps over ten seeds, `SWEEP_SEEDS=1` over
one. `--resume` goes on with a sweep that was stopped or killed. A trial runs in a single process;
the second axis, hardware, is any of the three settings below, in the file or on the command line:

    rllib train file cartpole_sweep.py --set 'num_env_runners={"grid_search": [0, 2, 4]}'

Three trials of seed 0 took 36, 36 and 46 seconds (start-up, about 8 seconds, not counted), two at
once, with Ray 2.60.0, torch 2.13.0, Python 3.11 and an earlier, slower version of this package on a
2-core machine that had some other work besides. At that rate the 36 trials of three seeds take 15
minutes: extrapolated.
"""

import os

from ray import tune
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

from rllib_weighted import WeightedPPOConfig, merge_grid

NUM_WORKERS = 8
STRATEGIES = ["average", "sum", "reward_weighted", "loss_weighted"]
MIN_WEIGHTS = [factor / NUM_WORKERS for factor in (1 / 4, 1 / 2, 1, 2, 4)]
SEEDS = list(range(int(os.environ.get("SWEEP_SEEDS", "3"))))

# Hardware: each can be a `tune.grid_search([...])` too. The workers stay eight.
NUM_ENV_RUNNERS = 0
NUM_LEARNERS = 0
NUM_GPUS_PER_LEARNER = 0

config = (
    WeightedPPOConfig()
    .environment("CartPole-v1")
    .env_runners(
        num_env_runners=NUM_ENV_RUNNERS,
        num_envs_per_env_runner=tune.sample_from(
            lambda config: NUM_WORKERS // max(1, config["num_env_runners"])
        ),
        num_cpus_per_env_runner=0.5,
    )
    .learners(num_learners=NUM_LEARNERS, num_gpus_per_learner=NUM_GPUS_PER_LEARNER)
    .training(
        **merge_grid(STRATEGIES, MIN_WEIGHTS),
        merge_unit="env",
        train_batch_size=1024,
        minibatch_size=256,
        num_epochs=10,
        lr=[[0, 1e-3], [150_000, 1e-4]],
        gamma=0.98,
        lambda_=0.9,
        clip_param=0.2,
        vf_clip_param=1e4,
        vf_loss_coeff=0.5,
        use_kl_loss=False,
        grad_clip=0.5,
        grad_clip_by="global_norm",
    )
    .rl_module(model_config=DefaultModelConfig(fcnet_hiddens=[64, 64]))
    .evaluation(
        evaluation_interval=25,
        evaluation_duration=10,
        evaluation_duration_unit="episodes",
        # Of several environments, the first episodes to end are the shortest ones.
        evaluation_config={"num_envs_per_env_runner": 1},
    )
    .debugging(seed=tune.grid_search(SEEDS))
)

stop = {"num_env_steps_sampled_lifetime": 200_000}

if __name__ == "__main__":
    from rllib_weighted.cli import train_file_main

    train_file_main(__file__)
