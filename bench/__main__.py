"""`make bench`: every measurement that needs no data of others, in one run and one table.

    python -m bench [NAME ...] [--quick] [--json]

Each bench runs in a process of its own, so that none warms up another. One that fails is named below the table, and the exit code is 1.
`--quick` is for a busy or a small machine: small sizes, about ten minutes of one core in all.
"""

import argparse
import importlib
import json
import subprocess
import sys
from dataclasses import asdict

from bench.table import Row, machine

BENCHES = (
    "startup",
    "resume",
    "overhead",
    "growth",
    "swarm",
    "critique_revision",
    "prefix_sharing",
    "generation",
    "judge_parsing",
    "reward_scoring",
    "training_speed",
    "plan_accuracy",
    "monitor",
)
"""Modules of this folder with a function `rows(quick)`."""


def measured(name: str, quick: bool) -> tuple[list[Row], str]:
    """Return a bench's rows, and what went wrong, if anything did."""
    command = [sys.executable, "-m", "bench", "--one", name, *(["--quick"] if quick else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return [], f"{name}: exit {done.returncode}: {(done.stderr.strip().splitlines() or ['no word'])[-1]}"
    return [Row(**r) for r in json.loads(done.stdout.splitlines()[-1])], ""


def show(head: dict[str, object], rows: list[Row]) -> None:
    """Print one table, with the machine above it."""
    from rich.console import Console

    from cai.core.console import plain, plain_table

    console = Console()
    if not console.is_terminal:
        console.width = 160
    for key, value in head.items():
        text = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
        console.print(plain(f"{key}: {', '.join(map(str, text)) if isinstance(text, list) else text}", "dim"))
    table = plain_table("bench", "what", "against", "median", "least – greatest", "n", right=("median", "least – greatest", "n"))
    for r in rows:
        spread = f"{r.low:,.3g} – {r.high:,.3g}" if r.n > 1 else ""
        table.add_row(r.bench, f"{r.what}\n  {r.note}" if r.note else r.what, r.against, f"{r.value:,.3g} {r.unit}", spread, str(r.n))
    console.print(table)


def main() -> int:
    """Run the benches asked for; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHES)}")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.one:
        print(json.dumps([asdict(r) for r in importlib.import_module(f"bench.{a.one}").rows(a.quick)]))
        return 0
    if unknown := [n for n in a.names if n not in BENCHES]:
        print(f"no bench {', '.join(unknown)}; there are: {' '.join(BENCHES)}", file=sys.stderr)
        return 2
    head, rows, faults = machine(), [], []
    for name in a.names or BENCHES:
        print(f"{name} …", file=sys.stderr, flush=True)
        found, fault = measured(name, a.quick)
        rows += found
        faults += [fault] if fault else []
    if a.json:
        print(json.dumps({"machine": head, "quick": a.quick, "rows": [asdict(r) for r in rows], "faults": faults}, indent=1))
    else:
        show(head, rows)
    for fault in faults:
        print(fault, file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
