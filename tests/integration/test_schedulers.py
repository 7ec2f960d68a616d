"""Tune's schedulers and searches on CartPole: early stopping, population-based training, Optuna."""

from __future__ import annotations

import functools
import json
import math
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from ray import tune
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.tune.schedulers import ASHAScheduler, PopulationBasedTraining

from rllib_weighted.records import read_history
from tests.sampling.envs import ScriptedEnv

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("ray_session"),
    # Both ways are tested.
    pytest.mark.filterwarnings("ignore:Consider boosting PBT performance:UserWarning"),
]

NUM_WORKERS = 2
METRIC = "merge/episode_return_mean"


def settings(**more: Any) -> dict[str, Any]:
    return {
        "env": "CartPole-v1",
        "num_env_runners": 0,
        "num_envs_per_env_runner": NUM_WORKERS,
        "merge_unit": "env",
        "train_batch_size": 256,
        "minibatch_size": 128,
        "num_epochs": 1,
        "seed": 3,
        "use_kl_loss": False,
        "_model_config": DefaultModelConfig(fcnet_hiddens=[8]),
        **more,
    }


def tuner(
    folder: Path, space: dict[str, Any], rounds: int, *, callbacks: Any = None, **search: Any
) -> tune.Tuner:
    return tune.Tuner(
        "WeightedPPO",
        param_space=space,
        tune_config=tune.TuneConfig(**search),
        run_config=tune.RunConfig(
            name="run",
            storage_path=str(folder),
            stop={"training_iteration": rounds},
            # Tune kills a process that has not stopped in ten seconds: the last rounds are safe.
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=True),
            callbacks=callbacks,
            verbose=0,
        ),
    )


class Meet(RLlibCallback):
    """Lets no trial end its first round before both have: rounds here take milliseconds, and a
    scheduler compares only those that have a result."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def on_train_result(self, *, algorithm: Any, result: dict[str, Any], **info: Any) -> None:
        (self.folder / f"met-{result['config']['merge_strategy']}").touch()
        deadline = time.monotonic() + 60
        while len(list(self.folder.glob("met-*"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)


def finished(results: tune.ResultGrid) -> list[Any]:
    assert results.num_errors == 0, results.errors
    return list(results)


def total_weights(trial_folder: str) -> dict[int, float]:
    """Returns the sum of the workers' weights in each round of a trial's history."""
    rows = read_history(trial_folder).to_pydict()
    weights: dict[int, list[float]] = {}
    for round, weight in zip(rows["round"], rows["weight"], strict=True):
        weights.setdefault(round, []).append(weight)
    assert {len(found) for found in weights.values()} == {NUM_WORKERS}
    return {round: sum(found) for round, found in weights.items()}


def test_asha_stops_trials_early(tmp_path: Path) -> None:
    scheduler = ASHAScheduler(max_t=8, grace_period=2, reduction_factor=2)
    space = settings(lr=tune.grid_search([0.0, 1e-3, 3e-3, 1e-2]), merge_strategy="reward_weighted")
    search = {"scheduler": scheduler, "metric": METRIC, "mode": "max"}
    results = finished(tuner(tmp_path, space, 100, **search).fit())
    rounds = sorted(result.metrics["training_iteration"] for result in results)
    assert len(rounds) == 4
    assert rounds[0] in (2, 4)
    assert rounds[-1] == 8


# ASHA's percentile leaves NaN out; numpy warns of a rung where nobody has a return yet.
@pytest.mark.filterwarnings("ignore:All-NaN slice encountered:RuntimeWarning")
@pytest.mark.parametrize("with_asha", [False, True])
def test_rounds_before_the_first_episode_has_ended_are_no_hindrance(
    tmp_path: Path, with_asha: bool
) -> None:
    """16 steps in each environment and round, 40 in an episode: the first ends in round 3."""
    contexts = [{"length": 40, "rewards": {40: last}} for last in (1.0, 11.0)]
    space = settings(train_batch_size=32, minibatch_size=32, merge_strategy="average")
    space |= {"env": ScriptedEnv, "env_config": tune.grid_search(contexts)}
    asha = ASHAScheduler(max_t=6, grace_period=1, reduction_factor=2) if with_asha else None
    fitted = tuner(tmp_path, space, 6, scheduler=asha, metric=METRIC, mode="max").fit()
    results = finished(fitted)
    for result in results:
        # 39 rewards of 1 and the last one: no partial return passes for a whole one.
        known = 39 + result.config["env_config"]["rewards"][40]
        rows = result.metrics_dataframe
        reached = len(rows)
        assert reached == 6 or (with_asha and reached < 6)
        assert rows[METRIC].isna().tolist() == [round < 3 for round in range(1, reached + 1)]
        assert set(rows[METRIC].dropna()) <= {known}
        lines = Path(result.path, "result.json").read_text().splitlines()
        logged = [json.loads(line) for line in lines]
        assert [math.isnan(row["merge"]["episode_return_mean"]) for row in logged] == (
            rows[METRIC].isna().tolist()
        )
    if with_asha:
        return
    for scope in ("all", "last", "avg", "last-5-avg"):
        for mode, best in (("max", 50.0), ("min", 40.0)):
            found = fitted.get_best_result(METRIC, mode, scope=scope)
            assert found.metrics["merge"]["episode_return_mean"] == best, (scope, mode)


def population() -> dict[str, Any]:
    """A population whose best member is known: that whose worker 0 weighs most.

    Whoever is replaced gets the only mutation that there is, and then weighs more still.
    """
    scheduler = PopulationBasedTraining(
        time_attr="training_iteration",
        perturbation_interval=2,
        quantile_fraction=0.5,
        resample_probability=1.0,
        hyperparam_mutations={"merge_strategy": ["reward_weighted"], "min_weight": [3.0]},
    )
    return {"scheduler": scheduler, "metric": "merge/workers/0/weight", "mode": "max"}


# sum w: 1 for average, N for sum, 1 + N m for the mutation.
AVERAGE, SUM, MUTATED = 1.0, float(NUM_WORKERS), 1 + NUM_WORKERS * 3.0


def start(folder: Path) -> dict[str, Any]:
    return settings(
        merge_strategy=tune.grid_search(["average", "sum"]),
        min_weight=0.0,
        callbacks=functools.partial(Meet, folder),
    )


@pytest.mark.parametrize("reuse_actors", [False, True])
def test_pbt_mutates_the_merge_of_a_running_trial(tmp_path: Path, reuse_actors: bool) -> None:
    search = {**population(), "reuse_actors": reuse_actors}
    results = finished(tuner(tmp_path, start(tmp_path), 8, **search).fit())
    mutated = [result.config["min_weight"] == 3.0 for result in results]
    assert mutated[0]  # The other one may follow, once the first has overtaken it.
    for result, before, is_mutated in zip(results, (AVERAGE, SUM), mutated, strict=True):
        # Whoever is replaced has the mutation from the round on that it took over, through the
        # end; no round is missing or twice.
        weights = list(total_weights(result.path).items())
        assert [round for round, _ in weights] == list(range(1, 9))
        num_before = sum(total == pytest.approx(before) for _, total in weights)
        assert num_before >= 2
        assert (num_before < 8) == is_mutated
        totals = [total for _, total in weights]
        expected = [before] * num_before + [MUTATED] * (8 - num_before)
        assert totals == pytest.approx(expected)


class InterruptOnce(tune.Callback):
    """Ends the experiment in the second round after a mutation, as Ctrl-C would."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker
        self.num_mutated = 0

    def on_trial_result(
        self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        self.num_mutated += result["config"]["min_weight"] == 3.0
        if self.num_mutated == 2 and not self.marker.exists():
            self.marker.touch()
            signal.raise_signal(signal.SIGUSR1)


# Tune leaves open what it logs of trials that it has not ended.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_mutation_survives_the_resumption_of_the_experiment(tmp_path: Path) -> None:
    interrupt = InterruptOnce(tmp_path / "interrupted")
    tuner(tmp_path, start(tmp_path), 8, callbacks=[interrupt], **population()).fit()
    assert interrupt.marker.exists()
    # With a `param_space`, as the command resumes, Tune by itself would forget the mutation.
    resumed = tune.Tuner.restore(
        str(tmp_path / "run"), "WeightedPPO", param_space=start(tmp_path), resume_unfinished=True
    )
    average, _ = finished(resumed.fit())
    weights = total_weights(average.path)
    assert list(weights)[-1] == 8
    first = min(round for round, total in weights.items() if total > SUM + 1e-6)
    since = [total for round, total in weights.items() if round >= first]
    assert len(since) > 2
    assert since == pytest.approx([MUTATED] * len(since))


def test_optuna_searches(tmp_path: Path) -> None:
    from ray.tune.search.optuna import OptunaSearch

    space = settings(
        merge_strategy=tune.choice(["reward_weighted", "loss_weighted"]),
        min_weight=tune.uniform(0.0, 4.0),
    )
    search = {"search_alg": OptunaSearch(seed=1), "num_samples": 4, "metric": METRIC, "mode": "max"}
    results = finished(tuner(tmp_path, space, 2, **search).fit())
    drawn = {(r.config["merge_strategy"], r.config["min_weight"]) for r in results}
    assert len(drawn) == 4
    for result in results:
        expected = 1 + NUM_WORKERS * result.config["min_weight"]
        assert total_weights(result.path)[2] == pytest.approx(expected)
