"""Tests of rllib_weighted.merging."""
