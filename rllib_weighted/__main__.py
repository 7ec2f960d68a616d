"""`python -m rllib_weighted`: the `rllib` command where the package is not installed."""

from rllib_weighted.cli.main import main

if __name__ == "__main__":
    main()
