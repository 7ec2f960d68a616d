"""PPO with weighted merging, on one page: an executable specification.

N workers act in differently seeded copies of one environment. Each optimizer step takes a minibatch
of every worker, computes every worker's own gradient, and merges the N gradients with weights that
follow the workers' rewards or losses. This file needs neither Ray nor the package. It says what the
package computes, one worker after the other and as plainly as possible; the package's learner is
tested against it (tests/learning/test_against_reference.py).

    python tests/reference_ppo.py

learns CartPole-v1. With the settings below the mean return of the last 100 episodes was 500, the
highest there is, after 122,880 steps and 88 to 108 s of CPU time, for each of seeds 1, 2 and 3.

Sources: weighting by reward or loss, and own parameters per worker, are ideas of arXiv 2304.12778;
the formula of the weights is ours, after that paper. PPO is Schulman et al. 2017, arXiv 1707.06347;
its advantages are Schulman et al. 2016, arXiv 1506.02438. Not shown: workers that are dropped for
numbers that are not finite, RLlib's KL penalty, other transforms of signals into shares.
"""

import copy
import dataclasses
import math
from collections import deque

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Categorical

Batch = dict[str, Tensor]  # Columns of [rows, ...]; a row is one step of a worker.


@dataclasses.dataclass(frozen=True)
class Settings:
    """What can be chosen; steps are environment steps."""

    env: str = "CartPole-v1"
    seed: int = 1
    num_workers: int = 8  # N
    num_rounds: int = 120
    num_steps: int = 128  # per worker and round
    num_epochs: int = 10
    num_minibatches: int = 4  # per epoch, the same number for every worker
    # PPO
    hidden: int = 64
    lr: float = 1e-3  # falls to 0 over the rounds
    gamma: float = 0.98  # discount factor
    lambda_: float = 0.9  # decay of GAE
    clip: float = 0.2  # of the probability ratio
    value_clip: float = math.inf  # of the squared error of a value
    value_coeff: float = 0.5
    entropy_coeff: float = 0.0
    grad_clip: float = 0.5  # norm of the gradient
    # Merging
    strategy: str = "reward_weighted"  # or "loss_weighted", "average", "sum"
    min_weight: float | None = None  # m; None: 1 / N
    offset: float | str = "auto"  # or "min", or a number
    direction: str = "high"  # or "low": a lower signal weighs more
    loss: str = "total"  # the signal of "loss_weighted"; or "policy", "value"
    scope: str = "minibatch"  # or "round": the loss over the whole batch, before the first step
    # True: with "average" it is the paper's Actor-avg, with "sum" its Actor-sum.
    per_worker_parameters: bool = False


# The networks


def layers(num_inputs: int, hidden: int, num_outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(num_inputs, hidden),
        nn.Tanh(),
        nn.Linear(hidden, hidden),
        nn.Tanh(),
        nn.Linear(hidden, num_outputs),
    )


class Net(nn.Module):
    """A policy and a value function, which have no layers in common."""

    def __init__(self, num_inputs: int, num_actions: int, hidden: int) -> None:
        super().__init__()
        self.policy = layers(num_inputs, hidden, num_actions)
        self.value = layers(num_inputs, hidden, 1)
        self.policy[-1].weight.data *= 0.01  # At first, all actions are about equally likely.


# Sampling


class Worker:
    """One copy of the environment. Its running episode goes on in the next round."""

    def __init__(self, env: str, seed: int) -> None:
        self.env = gym.make(env)
        self.obs, _ = self.env.reset(seed=seed)
        self.running_return = 0.0
        self.returns: list[float] = []  # Undiscounted, of the episodes that ended in this round.
        self.signal = math.nan  # Their mean; if none ended, the last one known.

    @torch.no_grad()
    def sample(self, net: Net, num_steps: int) -> list[dict]:
        """Acts for a number of steps; returns them, cut into chunks where episodes end.

        A chunk of T steps has T + 1 observations; the last one is that after the last step.
        """
        chunks, self.returns = [], []
        observations, taken = [self.obs], []
        for step in range(num_steps):
            policy = Categorical(logits=net.policy(torch.as_tensor(self.obs)))
            action = policy.sample()
            self.obs, reward, terminated, truncated, _ = self.env.step(action.item())
            observations.append(self.obs)
            taken.append((action, policy.log_prob(action), torch.tensor(float(reward))))
            self.running_return += float(reward)
            ended = terminated or truncated
            if ended or step == num_steps - 1:
                columns = map(torch.stack, zip(*taken, strict=True))
                chunk = dict(zip(("actions", "logp", "rewards"), columns, strict=True))
                chunk["obs"] = torch.as_tensor(np.stack(observations))
                chunks.append(chunk | {"terminated": terminated})
            if ended:
                self.returns.append(self.running_return)
                self.running_return = 0.0
                self.obs, _ = self.env.reset()
                observations, taken = [self.obs], []
        if self.returns:
            self.signal = float(np.mean(self.returns))
        return chunks


# Advantages


def gae(rewards: Tensor, values: Tensor, terminated: bool, gamma: float, lambda_: float) -> Tensor:
    """Generalized advantage estimation of one chunk (Schulman et al. 2016, eq. 16).

        delta_t = r_t + gamma V(s_{t+1}) - V(s_t)
        A_t     = delta_t + gamma lambda A_{t+1}

    There is one value more than there are rewards: where an episode was cut off or goes on, V of
    its last observation stands for the rewards to come. Where it terminated, none come.
    """
    following = values[1:].clone()
    if terminated:
        following[-1] = 0.0
    advantages = rewards + gamma * following - values[:-1]
    for t in reversed(range(len(advantages) - 1)):
        advantages[t] += gamma * lambda_ * advantages[t + 1]
    return advantages


def make_batch(net: Net, chunks: list[dict], settings: Settings) -> Batch:
    """One worker's steps of a round, with what PPO's loss needs to know of them."""
    parts = []
    for chunk in chunks:
        with torch.no_grad():
            values = net.value(chunk["obs"]).squeeze(-1)
        advantages = gae(
            chunk["rewards"], values, chunk["terminated"], settings.gamma, settings.lambda_
        )
        part = {
            "obs": chunk["obs"][:-1],
            "actions": chunk["actions"],
            "logp": chunk["logp"],  # log pi_old(a | s), of the policy that acted
            "advantages": advantages,
            "targets": advantages + values[:-1],  # for the value function
        }
        parts.append(part)
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def standardized(advantages: Tensor) -> Tensor:
    """Mean 0 and standard deviation 1, over one worker's whole batch."""
    deviation = advantages.std(correction=0).clamp(min=1e-4)
    return (advantages - advantages.mean()) / deviation


# The loss of one worker


def ppo_loss(net: Net, batch: Batch, settings: Settings) -> Batch:
    """The mean loss over some rows of one worker (Schulman et al. 2017, eq. 7 and 9).

        r       = pi(a | s) / pi_old(a | s)
        L_clip  = mean of -min(r A, clip(r, 1 - eps, 1 + eps) A)
        L_value = mean of min((V(s) - target)^2, value_clip)
        L       = L_clip + c_value L_value - c_entropy (mean entropy of pi)

    Squared errors are clipped as in RLlib; their gradient is 0 beyond the limit.
    """
    policy = Categorical(logits=net.policy(batch["obs"]))
    ratio = torch.exp(policy.log_prob(batch["actions"]) - batch["logp"])
    clipped = ratio.clamp(1 - settings.clip, 1 + settings.clip)
    policy_loss = -torch.min(ratio * batch["advantages"], clipped * batch["advantages"]).mean()
    error = net.value(batch["obs"]).squeeze(-1) - batch["targets"]
    value_loss = error.square().clamp(max=settings.value_clip).mean()
    entropy = policy.entropy().mean()
    total = policy_loss + settings.value_coeff * value_loss - settings.entropy_coeff * entropy
    return {"total": total, "policy": policy_loss, "value": value_loss}


def gradient(net: Net, loss: Tensor) -> Tensor:
    """The gradient of a loss by all parameters, as one vector [P]."""
    parts = torch.autograd.grad(loss, list(net.parameters()))
    return torch.cat([part.flatten() for part in parts])


# Merging


def shares(signals: list[float], settings: Settings) -> np.ndarray:
    """p_i = (s_i + offset) / sum_j (s_j + offset), so that sum p = 1; ours, after arXiv 2304.12778.

    The offset "auto" lifts the lowest signal to 0 if it is negative, and is 0 otherwise; "min"
    always makes the lowest signal 0. A missing signal takes the mean of the others.
    """
    s = np.array(signals)
    known = np.isfinite(s)
    if not known.any():
        return np.full(len(s), 1 / len(s))
    s[~known] = s[known].mean()
    if settings.direction == "low":
        s = -s
    if settings.offset == "auto":
        s = s + max(0.0, -s.min())
    elif settings.offset == "min":
        s = s - s.min()
    else:
        s = s + settings.offset
    return s / s.sum() if s.sum() > 0 else np.full(len(s), 1 / len(s))


def weights(signals: list[float], settings: Settings) -> np.ndarray:
    """w_i = p_i + m; ours, after arXiv 2304.12778. The baselines: 1 / N, and 1.

    A worker with weight 2 moves the parameters as two identical workers with weight 1 would.
    """
    n = len(signals)
    if settings.strategy == "average":
        return np.full(n, 1 / n)
    if settings.strategy == "sum":
        return np.ones(n)
    m = 1 / n if settings.min_weight is None else settings.min_weight
    return shares(signals, settings) + m


# One round


def update(
    nets: list[Net],
    optimizers: list[torch.optim.Adam],
    batches: list[Batch],
    returns: list[float],
    steps: list[list[np.ndarray]],
    settings: Settings,
) -> None:
    """Takes the optimizer steps of a round; `steps[k][i]` are the rows of worker i in step k.

    `nets[i]` is the network of worker i: the same one for all, or one each. There is an optimizer
    per network.
    """
    batches = [{**batch, "advantages": standardized(batch["advantages"])} for batch in batches]
    signals = returns
    if settings.strategy == "loss_weighted" and settings.scope == "round":
        signals = [
            ppo_loss(net, batch, settings)[settings.loss].item()
            for net, batch in zip(nets, batches, strict=True)
        ]
    for rows in steps:
        losses, gradients = [], []
        for net, batch, own in zip(nets, batches, rows, strict=True):
            loss = ppo_loss(net, {name: column[own] for name, column in batch.items()}, settings)
            gradients.append(gradient(net, loss["total"]))
            losses.append(loss[settings.loss].item())
        if settings.strategy == "loss_weighted" and settings.scope == "minibatch":
            signals = losses
        w = weights(signals, settings).tolist()
        merged = sum(w_i * g_i for w_i, g_i in zip(w, gradients, strict=True))
        if settings.per_worker_parameters:  # g_i' = g_i + sum_j w_j g_j (arXiv 2304.12778)
            for net, optimizer, g_i in zip(nets, optimizers, gradients, strict=True):
                take_step(net, optimizer, g_i + merged, settings)
        else:
            take_step(nets[0], optimizers[0], merged, settings)


def take_step(net: Net, optimizer: torch.optim.Adam, g: Tensor, settings: Settings) -> None:
    """Clips a gradient, [P], by its norm, and moves the parameters by it."""
    parameters = list(net.parameters())
    parts = g.split([parameter.numel() for parameter in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.grad = part.view_as(parameter).clone()
    nn.utils.clip_grad_norm_(parameters, settings.grad_clip)
    optimizer.step()


def minibatches(
    num_rows: list[int], settings: Settings, rng: np.random.Generator
) -> list[list[np.ndarray]]:
    """The rows of every step: each worker shuffles its own rows anew in each epoch."""
    steps = []
    for _ in range(settings.num_epochs):
        parts = [np.array_split(rng.permutation(n), settings.num_minibatches) for n in num_rows]
        steps += [list(rows) for rows in zip(*parts, strict=True)]
    return steps


# Training


def train(settings: Settings) -> float:
    """Trains, and returns the mean return of the last 100 episodes of all workers."""
    torch.manual_seed(settings.seed)
    rng = np.random.default_rng(settings.seed)
    seeds = np.random.SeedSequence(settings.seed).generate_state(settings.num_workers).tolist()
    workers = [Worker(settings.env, seed) for seed in seeds]
    env = workers[0].env
    first = Net(env.observation_space.shape[0], env.action_space.n, settings.hidden)
    nets = [first] * settings.num_workers
    optimizers = [torch.optim.Adam(first.parameters())]
    if settings.per_worker_parameters:  # All of them start identical.
        nets = [copy.deepcopy(first) for _ in workers]
        optimizers = [torch.optim.Adam(net.parameters()) for net in nets]
    recent: deque[float] = deque(maxlen=100)
    for round in range(1, settings.num_rounds + 1):
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = settings.lr * (1 - (round - 1) / settings.num_rounds)
        batches = []
        for worker, net in zip(workers, nets, strict=True):
            chunks = worker.sample(net, settings.num_steps)
            batches.append(make_batch(net, chunks, settings))
            recent.extend(worker.returns)
        steps = minibatches([len(batch["obs"]) for batch in batches], settings, rng)
        returns = [worker.signal for worker in workers]
        update(nets, optimizers, batches, returns, steps, settings)
        if round % 10 == 0:
            num_steps = round * settings.num_workers * settings.num_steps
            print(f"{num_steps:>8,} steps   mean return of 100 episodes {np.mean(recent):6.1f}")
    return float(np.mean(recent))


if __name__ == "__main__":
    train(Settings())
