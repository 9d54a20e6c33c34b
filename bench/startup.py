"""How long the command line takes to answer when nothing has to be loaded.

python -m bench.startup [--repeats 7]
"""

import argparse
import json
import statistics
import subprocess
import sys
import time

from bench.table import Row, row

COMMANDS = {"cai --help": ["--help"], "cai constitution lint": ["constitution", "lint", "constitution/general.yaml"]}


def measure(repeats: int) -> dict[str, list[float]]:
    """Return seconds per command, after one run that isn't counted."""
    found = {}
    for name, arguments in COMMANDS.items():
        seconds = []
        for _ in range(repeats + 1):
            started = time.perf_counter()
            subprocess.run([sys.executable, "-m", "cai", *arguments], check=True, capture_output=True)
            seconds.append(time.perf_counter() - started)
        found[name] = seconds[1:]
    return found


def rows(quick: bool) -> list[Row]:
    """Return each command's seconds."""
    return [row("startup", name, "", seconds, "s") for name, seconds in measure(3 if quick else 7).items()]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    found = measure(parser.parse_args().repeats)
    shown = {name: [round(f(seconds), 3) for f in (min, statistics.median, max)] for name, seconds in found.items()}
    print(json.dumps({"seconds_min_median_max": shown}))
