"""Faults at random in running trainings, and a long run: see `python -m tests.chaos --help`."""
