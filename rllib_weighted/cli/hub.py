"""Uploads a checkpoint to the Hugging Face Hub, with a model card; the verb `push-to-hub`."""

from __future__ import annotations

import importlib.util
import json
import math
import re
from pathlib import Path
from typing import Any

import yaml

from rllib_weighted.cli import InputError
from rllib_weighted.cli.checkpoints import find_checkpoint, numbers, round_of
from rllib_weighted.cli.evaluate import local_copy
from rllib_weighted.records.origin import matters, versions

_FOLDER = "checkpoint"  # Where it lies in the repository.
_REPO = re.compile(r"[\w.-]+/[\w.-]+")
_RETURNS = ("merge/episode_return_mean", "env_runners/episode_return_mean")
_CARD = """
# {algorithm} on {env}

A policy for `{env}`, trained with RLlib's {algorithm}{merge}.

{facts}

## Play it

```python
import gymnasium as gym
from huggingface_hub import snapshot_download
from rllib_weighted import load_policy

policy = load_policy(snapshot_download("{repo}") + "/{folder}")
env = gym.make("{env}")
obs, _ = env.reset()
done = False
while not done:
    obs, reward, terminated, truncated, _ = env.step(policy(obs))
    done = terminated or truncated
```

A checkpoint is made of pickles: load only those of people whom you trust.

## Settings

```json
{settings}
```
"""


def push_checkpoint(checkpoint: str | Path, repo: str, *, private: bool = False) -> str:
    """Uploads a checkpoint as one commit, with a model card made from its trial's records.

    Args:
        checkpoint: A checkpoint, or the folder of a trial or experiment: see `find_checkpoint`.
        repo: The model's repository, `owner/name`; it is created if it is not there.
        private: Whether to create it as a private one.

    Returns:
        The address of the repository.

    Raises:
        InputError: There is no checkpoint, no token, or the Hub refuses or does not answer.
    """
    if not _REPO.fullmatch(repo):
        raise InputError(f"the repository must be named OWNER/NAME; found {repo!r}")
    location = find_checkpoint(checkpoint)
    if importlib.util.find_spec("huggingface_hub") is None:
        raise InputError('push-to-hub needs huggingface_hub: pip install "rllib-weighted[hub]"')
    from huggingface_hub import CommitOperationAdd, HfApi, get_token

    token = get_token()
    if token is None:
        raise InputError(
            "push-to-hub needs a token with write access, found none: set HF_TOKEN, or run "
            "`hf auth login`"
        )
    api = HfApi(token=token)
    card = model_card(repo, round_of(location)).encode()
    with local_copy(location) as folder:
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        operations = [CommitOperationAdd("README.md", card)] + [
            CommitOperationAdd(f"{_FOLDER}/{path.relative_to(folder).as_posix()}", path)
            for path in files
        ]
        try:
            url = api.create_repo(repo, private=private or None, exist_ok=True)
            api.create_commit(repo, operations, commit_message="Upload a checkpoint")
        except Exception as error:  # Of its HTTP client, of the Hub, or of the network.
            raise InputError(
                f"the Hub at {api.endpoint} has not taken {repo}: {error}. The token "
                "should be one with write access to that repository, and HF_ENDPOINT the Hub"
            ) from error
    return str(url)


def model_card(repo: str, result: dict[str, Any]) -> str:
    """Returns a model card, Markdown with metadata, of what a trial reported in a round.

    Args:
        repo: The repository's name, `owner/name`.
        result: The row of `result.json`; {} if there is none.
    """
    config = result.get("config", {})
    env = str(config.get("env") or "an environment")
    strategy = config.get("merge_strategy")
    algorithm = "WeightedPPO" if strategy else "PPO"
    found = dict(numbers(result))
    returns = [found[name] for name in _RETURNS if math.isfinite(found.get(name, math.nan))]
    facts = {
        "Environment": env,
        "Merge strategy": strategy,
        "Minimum weight": config.get("min_weight"),
        "Environment steps": found.get("num_env_steps_sampled_lifetime"),
        "Rounds": found.get("training_iteration"),
        "Mean return in training": f"{returns[0]:.2f}" if returns else None,
        "Seed": config.get("seed"),
        **{f"Version of {name}": v for name, v in versions(("rllib-weighted", "ray")).items()},
    }
    rows = [
        f"| {name} | {f'{v:,.0f}' if isinstance(v, float) and v.is_integer() else v} |"
        for name, v in facts.items()
        if v is not None
    ]
    merge = f", gradients merged by `{strategy}`" if strategy else ""
    settings = {name: value for name, value in config.items() if matters(name)}
    body = _CARD.format(
        algorithm=algorithm,
        env=env,
        merge=merge,
        facts="\n".join(["| | |", "|---|---|", *rows]),
        repo=repo,
        folder=_FOLDER,
        settings=json.dumps(settings, indent=2, sort_keys=True),
    )
    return f"---\n{yaml.safe_dump(_metadata(repo, env, returns), sort_keys=False)}---\n{body}"


def _metadata(repo: str, env: str, returns: list[float]) -> dict[str, Any]:
    """Returns what the Hub reads of a model card."""
    metadata: dict[str, Any] = {
        "library_name": "rllib_weighted",
        "pipeline_tag": "reinforcement-learning",
        "tags": ["reinforcement-learning", "deep-reinforcement-learning", "rllib", "ppo", env],
    }
    if returns:
        measured = {
            "task": {"type": "reinforcement-learning", "name": "reinforcement-learning"},
            "dataset": {"type": env, "name": env},
            "metrics": [
                {"type": "mean_reward", "name": "mean return in training", "value": returns[0]}
            ],
        }
        metadata["model-index"] = [{"name": repo.partition("/")[2], "results": [measured]}]
    return metadata
