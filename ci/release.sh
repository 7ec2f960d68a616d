#!/usr/bin/env bash
# Builds what would be published, and tries it as a stranger would: each file in an empty environment,
# outside of the checkout, with a short training.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
checkout=$PWD
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

rm -rf dist
.venv/bin/python -m build
.venv/bin/python -m twine check --strict dist/*

for file in dist/*; do
    env=$work/$(basename "$file")
    .venv/bin/python -m venv "$env"
    "$env/bin/pip" install --disable-pip-version-check --quiet --constraint ci/constraints.txt "$file"
    cd "$work"
    "$env/bin/rllib" version
    "$env/bin/rllib" example run cartpole --stop '{"training_iteration": 3}' \
        --storage-path "$work/results" --name "$(basename "$file")"
    "$env/bin/rllib" evaluate "$work/results/$(basename "$file")" --episodes 2
    cd "$checkout"
done
echo "dist/ is ready to be uploaded: $(ls dist | tr '\n' ' ')"
