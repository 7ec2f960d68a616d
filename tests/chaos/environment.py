"""The environment of the disturbed sweep, and the notes that its trials take."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from gymnasium.envs.classic_control.cartpole import CartPoleEnv

PACE_S = 0.05
NOTES = "rounds.log"


class PacedCartPole(CartPoleEnv):
    """CartPole whose episodes begin slowly, so that a fault finds its round.

    Config:
        folder: Where an order is looked for: while there is a file "nan-<worker index>", that env
            runner's rewards are NaN.
    """

    def __init__(self, context: Any) -> None:
        super().__init__()
        self._order = Path(context["folder"], f"nan-{context.worker_index}")

    def reset(self, **kwargs: Any) -> Any:
        time.sleep(PACE_S)
        return super().reset(**kwargs)

    def step(self, action: Any) -> Any:
        observation, reward, terminated, truncated, infos = super().step(action)
        if self._order.exists():
            reward = float("nan")
        return observation, reward, terminated, truncated, infos


def note_round(algorithm: Any, *, folder: str, **kwargs: Any) -> None:
    """Callback `on_train_result`: writes down that a trial has ended a round."""
    line = f"{algorithm.config.merge_strategy} {algorithm.rounds_done}\n"
    with Path(folder, NOTES).open("a") as stream:
        stream.write(line)


def noted_rounds(folder: Path) -> list[tuple[str, int]]:
    """Returns (strategy of the trial, round) of every round that was ended, in order."""
    path = folder / NOTES
    lines = path.read_text().splitlines() if path.exists() else []
    return [(strategy, int(number)) for strategy, number in map(str.split, lines)]
