#!/usr/bin/env bash
# Trains on a real cluster of two nodes on this machine's loopback, and checks what is left behind.
#
# The nodes' Python has what the package needs, but not the package: it reaches them through Ray.
# Its ports, files and home are apart from those of any other Ray here. However the script ends,
# every process that it started is gone, and no other one was touched.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

VENV=$PWD/.venv
SCRATCH=$(mktemp -d /tmp/rllib-cluster.XXXXXX) # Short: the paths of Ray's sockets must be.
MARK=RLLIB_CLUSTER_JOB=$SCRATCH
# Loopback addresses that are taken as given: Ray replaces 127.0.0.1 by the machine's own address.
HEAD=127.0.0.2
SECOND=127.0.0.3

step() { echo "cluster-job: $*"; }

# Everything is started through this: the mark tells our processes from all others. Waited for with
# `wait`, which a signal interrupts, so that the script ends at once when it is told to.
ours() {
  env -u RAY_ADDRESS -u PYTHONPATH "$MARK" HOME="$SCRATCH/home" PATH="$SCRATCH/python/bin:$PATH" \
    SPT_NOENV=1 RAY_USAGE_STATS_ENABLED=0 "$@" &
  wait "$!"
}

# The marked processes. (A process keeps its environment when Ray renames it, by SPT_NOENV.)
our_pids() {
  grep --files-with-matches --text --no-messages --fixed-strings --line-regexp --null-data \
    "$MARK" /proc/[0-9]*/environ | cut -d/ -f3 || true
}

clean_up() {
  local status=$? pid
  trap - EXIT
  trap '' INT TERM
  # Not with SIGTERM: it lets a node drain for half a minute, and there is nothing to save.
  for _ in {1..20}; do
    [[ -n $(our_pids) ]] || break
    for pid in $(our_pids); do kill -KILL "$pid" 2>/dev/null || true; done
    sleep 0.3
  done
  if [[ $status -ne 0 ]]; then
    tail -n 50 "$SCRATCH"/logs/*.log "$SCRATCH"/head/session_latest/logs/job-driver-*.log 2>/dev/null || true
  fi
  rm -rf "$SCRATCH"
  [[ -z $(our_pids) ]] || { echo "cluster-job: left behind: $(our_pids)" >&2; status=1; }
  exit "$status"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# A Python with everything in .venv but the package itself: a `.pth` file found on a path that a
# `.pth` file adds is not read, and an editable install consists of one. The scripts `ray` and `rllib`
# are those of .venv, for this Python.
make_python() {
  local script
  "$VENV/bin/python" -m venv --without-pip "$SCRATCH/python"
  "$VENV/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
    >"$("$SCRATCH/python/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/needs.pth"
  for script in ray rllib; do
    sed "1s|.*|#!$SCRATCH/python/bin/python|" "$VENV/bin/$script" >"$SCRATCH/python/bin/$script"
    chmod +x "$SCRATCH/python/bin/$script"
  done
  (cd / && ours python -c 'import ray, torch')
  if (cd / && ours python -c 'import rllib_weighted' 2>/dev/null); then
    echo "cluster-job: the package is installed in the nodes' Python: this would prove nothing" >&2
    return 1
  fi
}

# Prints $1 free ports, all different, and below those that the kernel hands out by itself.
free_ports() {
  "$VENV/bin/python" - "$1" <<'PYTHON'
import random, socket, sys

sockets = []
while len(sockets) < int(sys.argv[1]):
    try:
        sockets.append(socket.create_server(("", random.randint(20000, 32000))))
    except OSError:
        continue
print(*(each.getsockname()[1] for each in sockets))
PYTHON
}

# Starts the node $1 on the ports $2 to $5, with further options. Each has a folder of its own, as on
# machines of their own: in a common one, the second node would unpack uploads over the first one's.
start_node() {
  local node=$1 agent=$2 grpc=$3 runtime=$4 metrics=$5
  shift 5
  ours ray start --block --temp-dir="$SCRATCH/$node" --num-cpus=2 --num-gpus=0 \
    --object-store-memory=200000000 --disable-usage-stats --min-worker-port=0 --max-worker-port=0 \
    --dashboard-agent-listen-port="$agent" --dashboard-agent-grpc-port="$grpc" \
    --runtime-env-agent-port="$runtime" --metrics-export-port="$metrics" "$@" \
    >"$SCRATCH/logs/$node.log" 2>&1 &
  disown # The mark finds it; bash need not report its end.
}

# Waits up to $1 seconds for a command to succeed.
wait_for() {
  local deadline=$((SECONDS + $1))
  shift
  until "$@" >/dev/null 2>&1; do
    if ((SECONDS > deadline)); then
      echo "cluster-job: waited in vain for: $*" >&2
      return 1
    fi
    sleep 0.5
  done
}

submit() { ours ray job submit --address "$DASHBOARD" "$@"; }

num_nodes_is() {
  [[ $(ours ray list nodes --address "$DASHBOARD" --filter state=ALIVE --format json |
    grep --only-matching '"node_id"' | wc -l) -eq $1 ]]
}

check() { "$VENV/bin/python" ci/cluster_check.py "$@"; }

mkdir -p "$SCRATCH/home" "$SCRATCH/logs"
make_python

step "starting two nodes"
read -r -a PORTS < <(free_ports 11)
read -r GCS DASHBOARD_PORT CLIENT <<<"${PORTS[*]:8}"
DASHBOARD=http://$HEAD:$DASHBOARD_PORT
start_node head "${PORTS[@]:0:4}" --head --node-ip-address="$HEAD" --port="$GCS" \
  --ray-client-server-port="$CLIENT" --dashboard-host="$HEAD" --dashboard-port="$DASHBOARD_PORT"
wait_for 60 ours ray job list --address "$DASHBOARD"
start_node second "${PORTS[@]:4:4}" --node-ip-address="$SECOND" --address="$HEAD:$GCS"
wait_for 60 num_nodes_is 2

step "the package comes out of the uploaded folder, in the job and on both nodes"
submit --working-dir . -- python ci/cluster_check.py imports

step "training, by the working directory"
submit --working-dir . -- rllib train file tuned_examples/cartpole.py --name whole \
  --storage-path "$SCRATCH/results" --stop '{"training_iteration": 2}'
check results "$SCRATCH/results/whole" 2

step "training, by py_modules, until it is told to stop"
submit --no-wait --submission-id stopped --working-dir tuned_examples \
  --runtime-env-json "{\"py_modules\": [\"$PWD/rllib_weighted\"],
                       \"env_vars\": {\"RAY_JOB_STOP_WAIT_TIME_S\": \"60\"}}" \
  -- python -m rllib_weighted train file cartpole.py --name stopped \
  --storage-path "$SCRATCH/results" --stop '{"training_iteration": 1000000}'
wait_for 180 check rounds "$SCRATCH/results/stopped" 2
ours ray job stop --address "$DASHBOARD" stopped
check results "$SCRATCH/results/stopped"

step "done in $SECONDS s"
