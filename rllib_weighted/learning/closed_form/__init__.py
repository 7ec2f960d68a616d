"""Optimizer steps without autograd, for the networks that RLlib's PPO has by default."""
