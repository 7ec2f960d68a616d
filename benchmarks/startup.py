"""Time from the command to the first finished round, and the memory of the processes behind it.

    python benchmarks/startup.py [--repeats 5]        about a minute per repeat

`rllib train file tuned_examples/cartpole.py` against stock RLlib's PPO with the same settings in a
`tune.Tuner` (startup_peers.py), each in a fresh process with an empty home folder: two env runners
with four sub-environments each, the learner in the trial's own process. The first round has
finished when Tune has written its first result; the CPU time until then, of all processes together,
hardly depends on what else the machine does. Two seconds later the memory is read from /proc:
what is resident of a process (RSS), of that what is its own and what lies in files, and its
proportional share (PSS), which counts once what several processes have in common. The third
contender does not train: two Ray actors that have imported RLlib's env runner, the floor under
every env runner. Leave the machine alone meanwhile.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.parquet as pq
import typer
from machine import machine, machine_line
from rich.console import Console

HERE = Path(__file__).parent
PEERS = str(HERE / "startup_peers.py")
OURS, RLLIB, IMPORTS = "rllib train file", "stock RLlib", "imports only"
COMMANDS = {
    OURS: ["-m", "rllib_weighted", "train", "file", "tuned_examples/cartpole.py"],
    RLLIB: [PEERS, "rllib"],
    IMPORTS: [PEERS, "imports"],
}
TITLES = {
    "env runner": ("ray::WeightedEnvRunner", "ray::SingleAgentEnvRunner", "ray::Imports"),
    "trial": ("ray::WeightedPPO", "ray::PPO"),
}
MEMORY = {"VmRSS": "rss", "RssAnon": "own", "RssFile": "files", "Pss": "pss"}
POLL_SECONDS, SETTLE_SECONDS, TIMEOUT_SECONDS = 0.02, 2.0, 120.0
console = Console(stderr=True)


def descendants(pid: int) -> list[int]:
    """Returns the processes that a process has started, and theirs."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rsplit(")", 1)[1].split()[1])
        except OSError:  # It has ended.
            continue
        children.setdefault(parent, []).append(int(stat.parent.name))
    found = list(children.get(pid, []))
    for process in found:
        found += children.get(process, [])
    return found


def cpu_seconds(pid: int) -> float:
    """Returns the CPU time of a process and of those children of it that have ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def look(pid: int) -> dict[str, Any]:
    """Returns title, threads and memory in MiB of a process; nothing if it has ended."""
    folder = Path(f"/proc/{pid}")
    try:
        title = (folder / "cmdline").read_text().replace("\0", " ")
        lines = (folder / "status").read_text() + (folder / "smaps_rollup").read_text()
    except OSError:
        return {}
    fields = dict(line.split(":", 1) for line in lines.splitlines() if ":" in line)
    sizes = {name: int(fields[key].split()[0]) / 1024 for key, name in MEMORY.items()}
    return {"title": title, "threads": int(fields["Threads"]), **sizes}


def run_one(contender: str, repeat: int) -> dict[str, Any]:
    """Runs a contender until its first round has finished, looks at it, and stops it.

    Raises:
        typer.Exit: It ended before, or took too long; its output has been shown.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        paths = [str(HERE.parent), os.environ.get("PYTHONPATH", "")]
        variables = {"HOME": home, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
        with open(Path(home) / "output", "w+") as output:
            started = time.monotonic()
            process = subprocess.Popen(
                [sys.executable, *COMMANDS[contender]],
                cwd=HERE.parent,
                env={**os.environ, **variables},
                stdout=output,
                stderr=output,
            )
            try:
                while not any(
                    file.stat().st_size for file in Path(home).glob("ray_results/*/*/result.json")
                ):
                    if process.poll() is not None or time.monotonic() - started > TIMEOUT_SECONDS:
                        output.seek(0)
                        console.print(output.read()[-3000:], markup=False)
                        console.print(f"{contender} finished no round; its last lines are above.")
                        raise typer.Exit(1)
                    time.sleep(POLL_SECONDS)
                seconds = time.monotonic() - started
                cpu = sum(map(cpu_seconds, [process.pid, *descendants(process.pid)]))
                time.sleep(SETTLE_SECONDS)
                pids = [process.pid, *descendants(process.pid)]
                processes = [found for found in map(look, pids) if found]
            finally:
                stop(process)
    times = {"first_round_s": seconds, "cpu_s": cpu}
    return {"contender": contender, "repeat": repeat, **times, **summary(processes)}


def stop(process: subprocess.Popen[Any]) -> None:
    """Ends a run and waits until all that it started has gone."""
    left = descendants(process.pid)
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    until = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in left) and time.monotonic() < until:
        time.sleep(0.1)


def summary(processes: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the memory by kind of process (the mean of several), and of all together."""
    columns: dict[str, Any] = {
        "processes": len(processes),
        "all_pss": sum(found["pss"] for found in processes),
    }
    for kind, titles in TITLES.items():
        those = [found for found in processes if found["title"].startswith(titles)]
        for name in (*MEMORY.values(), "threads"):
            column = f"{kind.replace(' ', '_')}_{name}"
            columns[column] = sum(p[name] for p in those) / len(those) if those else None
    return columns


def spread(values: list[float | None], digits: str) -> str:
    """Returns "median (lowest – highest)"."""
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    low, middle, high = (format(f(known), digits) for f in (min, median, max))
    return f"{middle} ({low} – {high})" if low != high else middle


def report(records: list[dict[str, Any]], contenders: list[str]) -> str:
    """Returns the table as Markdown."""
    rows = {
        "first round finished after, s": ("first_round_s", ".1f"),
        "CPU time of all processes until then, s": ("cpu_s", ".1f"),
        "resident per env runner (RSS), MiB": ("env_runner_rss", ".0f"),
        "… its own, MiB": ("env_runner_own", ".0f"),
        "… in files that it shares, MiB": ("env_runner_files", ".0f"),
        "proportional per env runner (PSS), MiB": ("env_runner_pss", ".0f"),
        "threads per env runner": ("env_runner_threads", ".0f"),
        "resident of the trial's process (RSS), MiB": ("trial_rss", ".0f"),
        "proportional of the trial's process (PSS), MiB": ("trial_pss", ".0f"),
        "processes, those of Ray included": ("processes", ".0f"),
        "all of them together (PSS), MiB": ("all_pss", ",.0f"),
    }
    lines = [f"| | {' | '.join(contenders)} |", f"|---|{'---|' * len(contenders)}"]
    for name, (column, digits) in rows.items():
        cells = []
        for contender in contenders:
            values = [r[column] for r in records if r["contender"] == contender]
            unknown = contender == IMPORTS and column in ("first_round_s", "cpu_s")
            cells.append("–" if unknown else spread(values, digits))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    table = "\n".join(lines)
    return f"# Start-up\n\n{machine_line()}\n\nMedian (lowest – highest).\n\n{table}\n"


def main(
    repeats: Annotated[int, typer.Option(help="Runs of each contender.")] = 5,
    contender: Annotated[list[str] | None, typer.Option(help="Only these.")] = None,
    out: Annotated[Path, typer.Option(help="Where to write the results.")] = HERE / "results",
) -> None:
    """Measures, prints the table, and writes startup.md and startup.parquet."""
    contenders = contender or list(COMMANDS)
    unknown = set(contenders) - set(COMMANDS)
    if unknown:
        listed = ", ".join(COMMANDS)
        raise typer.BadParameter(f"found {', '.join(sorted(unknown))}; there are {listed}")
    records = []
    for repeat in range(repeats):
        for name in contenders if repeat % 2 == 0 else contenders[::-1]:
            records.append(run_one(name, repeat))
            seconds, rss = records[-1]["first_round_s"], records[-1]["env_runner_rss"]
            console.print(
                f"repeat {repeat + 1} of {repeats}, {name}: {seconds:.1f} s, {rss:.0f} MiB"
            )
    text = report(records, contenders)
    out.mkdir(parents=True, exist_ok=True)
    (out / "startup.md").write_text(text)
    table = pa.Table.from_pylist(records).replace_schema_metadata(machine())
    pq.write_table(table, out / "startup.parquet")
    print(text)


if __name__ == "__main__":
    typer.run(main)
