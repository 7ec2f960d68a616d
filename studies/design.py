"""What a study part is made of: plain data that stands before the first run.

A part is pre-registered by the file in `studies/parts/` that builds it. Everything that decides
what is run, and what is counted as learned, is in these classes; `digest` is stored with every
result, so that a change after the fact is noticed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Any, Literal

Score = Literal["episodes", "workers", "first context", "greedy"]
Context = Mapping[str, Any]


@dataclass(frozen=True)
class Task:
    """What is learned: an environment, PPO's settings for it, and what counts as learned.

    Attributes:
        name: Its name in tables.
        env: The environment's id; one of `studies.envs` if it has contexts.
        total_steps: Environment steps of a run.
        threshold: The score that counts as learned, in the unit of the return.
        training: Settings of `WeightedPPOConfig.training` that all arms share.
        hold: Rounds in a row that the score has to stay at the threshold.
        score: "episodes": the mean return of the last 100 episodes; "workers": the mean over the
            workers of each one's last 10 episodes or so, so that a context counts the same however
            long its episodes are; "first context": the same of the workers in the first context
            only, where the others' returns are too noisy to be a score; "greedy": the mean over
            the contexts of greedy episodes on held-out seeds, every `greedy_interval` rounds, for
            arms that choose what they play.
        greedy_interval: Rounds from one such evaluation to the next.
        greedy_episodes: Episodes in each context.
        num_workers: Workers that are merged, sub-environments of one process.
        hidden: Sizes of the hidden layers.
        vf_share_layers: Whether policy and value share them, as is RLlib's default.
        env_backend: "gymnasium" or "envpool".
        reward_scale: Factor on the rewards that the learner sees.
        normalize_observations: Whether there is a `MeanStdFilter`.
        contexts: What the environment of worker i is made with: the i-th, from the start again
            where there are more workers.
        held_out: What the environments of the final evaluation are made with.
        held_out_episodes: Greedy episodes in each of those, on seeds that training never uses.
    """

    name: str
    env: str
    total_steps: int
    threshold: float
    training: Mapping[str, Any]
    hold: int = 1
    score: Score = "episodes"
    greedy_interval: int = 5
    greedy_episodes: int = 5
    num_workers: int = 8
    hidden: tuple[int, ...] = (64, 64)
    vf_share_layers: bool = True
    env_backend: str = "gymnasium"
    reward_scale: float = 1.0
    normalize_observations: bool = False
    contexts: tuple[Context, ...] = ()
    held_out: tuple[Context, ...] = ({},)
    held_out_episodes: int = 20


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes:
        name: Its name in tables, unique in its experiment.
        training: Settings of `.training` on top of the task's.
        env_runners: Settings of `.env_runners`.
        task: Fields of the task that are different in this arm.
        algorithm: "WeightedPPO", or one of RLlib's own: "PPO", "APPO", "IMPALA".
        learner: A key of `studies.tried.LEARNERS`; "": the package's own.
    """

    name: str
    training: Mapping[str, Any] = field(default_factory=dict)
    env_runners: Mapping[str, Any] = field(default_factory=dict)
    task: Mapping[str, Any] = field(default_factory=dict)
    algorithm: str = "WeightedPPO"
    learner: str = ""


@dataclass(frozen=True)
class Experiment:
    """Arms that are compared on one task.

    Attributes:
        task: The task.
        arms: The arms.
        seeds: Seeds; every arm gets all of them, and runs of the same seed are pairs.
        contrasts: (arm, baseline): the comparisons that are tested. Holm's correction counts all of
            a part's.

    Raises:
        ValueError: Two arms have one name, or a contrast names none.
    """

    task: Task
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    contrasts: tuple[tuple[str, str], ...]

    def __post_init__(self) -> None:
        names = [arm.name for arm in self.arms]
        if len(set(names)) < len(names):
            raise ValueError(f"{self.name}: arms should have different names, found {names}")
        named = {name for contrast in self.contrasts for name in contrast}
        if unknown := sorted(named - set(names)):
            raise ValueError(f"{self.name}: contrasts name {unknown}; the arms are {names}")

    @property
    def name(self) -> str:
        """The task's name."""
        return self.task.name

    def arm(self, name: str) -> Arm:
        """Returns the arm of that name.

        Raises:
            KeyError: There is none.
        """
        return {arm.name: arm for arm in self.arms}[name]


@dataclass(frozen=True)
class Case:
    """One run."""

    experiment: str
    arm: str
    seed: int


@dataclass(frozen=True)
class Part:
    """A pre-registered part of the study.

    Attributes:
        name: Name of its file, of its results and of its section.
        title: Heading of its section.
        question: What it asks, what would answer it, and how: Markdown.
        cuts: What a larger study would have had, and why it is not here: Markdown.
        experiments: What is run.
        num_cut_contrasts: Contrasts that were registered and cut when the part had runs already.
            Holm's correction counts them, so that a cut makes nothing significant.

    Raises:
        ValueError: Two experiments have one name.
    """

    name: str
    title: str
    question: str
    cuts: str
    experiments: tuple[Experiment, ...]
    num_cut_contrasts: int = 0

    def __post_init__(self) -> None:
        names = [experiment.name for experiment in self.experiments]
        if len(set(names)) < len(names):
            raise ValueError(f"{self.name}: tasks should have different names, found {names}")

    def experiment(self, name: str) -> Experiment:
        """Returns the experiment of that name.

        Raises:
            KeyError: There is none.
        """
        return {experiment.name: experiment for experiment in self.experiments}[name]

    def cases(self) -> Iterator[Case]:
        """Yields all runs, seed by seed, so that whatever is there early is paired."""
        most = max(len(experiment.seeds) for experiment in self.experiments)
        for number in range(most):
            for experiment in self.experiments:
                for seed in experiment.seeds[number : number + 1]:
                    for arm in experiment.arms:
                        yield Case(experiment.name, arm.name, seed)


def task_of(task: Task, arm: Arm) -> Task:
    """Returns the task as an arm runs it."""
    return replace(task, **arm.task)


def digest(task: Task, arm: Arm) -> str:
    """Returns a short hash of everything that decides an arm's runs and what they count for.

    Fields at their defaults do not count, so that these classes can get new ones.
    """
    text = json.dumps([_given(task), _given(arm)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _given(data: Task | Arm) -> dict[str, Any]:
    found = {}
    for item in fields(data):
        has_factory = item.default_factory is not MISSING
        default = item.default_factory() if has_factory else item.default
        if (value := getattr(data, item.name)) != default:
            found[item.name] = value
    return found
