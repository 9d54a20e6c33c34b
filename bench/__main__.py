"""`make bench`: every measurement that needs no data of others, one after another, each as JSON.

python -m bench [NAME ...]
"""

import subprocess
import sys

BENCHES = ("startup", "resume", "overhead", "critique_revision", "prefix_sharing", "generation", "training_speed")


def main(names: list[str]) -> int:
    """Run the benches in processes of their own, so that none warms up another; return the worst exit code."""
    unknown = [n for n in names if n not in BENCHES]
    if unknown:
        print(f"no bench {', '.join(unknown)}; there are: {' '.join(BENCHES)}", file=sys.stderr)
        return 2
    codes = []
    for name in names or BENCHES:
        print(f"== {name}", flush=True)
        codes.append(subprocess.run([sys.executable, "-m", f"bench.{name}"], check=False).returncode)
    return max(codes)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
