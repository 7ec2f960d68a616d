#!/usr/bin/env bash
# Runs the fast tests with other versions of a dependency than the pinned ones, each in a clone of
# the last commit and an environment of its own:
#
#     ci/versions.sh ray 2.58.0 2.59.0
#     ci/versions.sh torch 2.11.0
#
# What passes may become the declared range in pyproject.toml. Needs network and, per version, ten
# minutes and two gigabytes; other builds of torch than the pinned one may be CUDA's, which are
# larger. Ends with 1 if a version fails; the logs stay in $LOGS (by default ./outputs/versions).
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if (($# < 2)); then
    sed -n '2,/^set/{s/^# \{0,1\}//p}' "$0" >&2
    exit 2
fi
package=$1
shift
logs=${LOGS:-$PWD/outputs/versions}
mkdir -p "$logs"
failed=0
for version in "$@"; do
    name="$package-$version"
    clone=$(mktemp -d)
    git clone --quiet . "$clone"
    sed -i "s/^$package==.*/$package==$version/" "$clone/ci/constraints.txt"
    # The declared range must not stand in the way of finding out what it could be.
    sed -i -E "s/\"($package(\[[a-z,]+\])?)[<>=][^\"]*\"/\"\1\"/" "$clone/pyproject.toml"
    # A cluster job runs the pinned Ray, says a test.
    [[ $package != ray ]] || sed -i "s/rayVersion: .*/rayVersion: \"$version\"/" "$clone/ci/rayjob.yaml"
    if make --directory="$clone" test ARGS="-q ${ARGS:-}" >"$logs/$name.txt" 2>&1; then
        echo "$name: passed, $(tail -n 1 "$logs/$name.txt")"
    else
        echo "$name: FAILED, see $logs/$name.txt"
        failed=1
    fi
    rm -rf "$clone"
done
exit $failed
