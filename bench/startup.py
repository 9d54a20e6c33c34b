"""How long the command line takes to answer when nothing has to be loaded.

python -m bench.startup [--repeats 7]
"""

import argparse
import json
import statistics
import subprocess
import sys
import time

COMMANDS = {"cai --help": ["--help"], "cai constitution lint": ["constitution", "lint", "constitution/general.yaml"]}


def measure(repeats: int) -> dict[str, list[float]]:
    """Return seconds per command: minimum, median, maximum, after one run that isn't counted."""
    found = {}
    for name, arguments in COMMANDS.items():
        seconds = []
        for _ in range(repeats + 1):
            started = time.perf_counter()
            subprocess.run([sys.executable, "-m", "cai", *arguments], check=True, capture_output=True)
            seconds.append(time.perf_counter() - started)
        counted = seconds[1:]
        found[name] = [round(f(counted), 3) for f in (min, statistics.median, max)]
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    print(json.dumps({"seconds_min_median_max": measure(parser.parse_args().repeats)}))
