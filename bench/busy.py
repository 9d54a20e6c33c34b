"""What a busy neighbour costs: decoding and training beside nothing and beside two busy threads, by how threads wait for each other.

    python -m bench.busy [--repeats 3]

Each measurement is a process of its own, because OpenMP reads its settings when it is loaded; the settings take turns. Plain transformers
on the embedded model in float32, without `cai`, so that it is OpenMP that is measured: 24 decoding steps of 16 rows, and two training steps
of 4 × 128 tokens. `cai` sets `GOMP_SPINCOUNT=10000`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

SETTINGS: dict[str, dict[str, str]] = {
    "OpenMP's own": {},
    "cai's": {"GOMP_SPINCOUNT": "10000"},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
"""Environment of each."""
ROWS, STEPS, LENGTH = 16, 24, 128
Rates = dict[str, float]
"""Decoding steps, decoded tokens, training steps and trained tokens a second."""


def child(folder: str) -> Rates:
    """Measure in this process, which doesn't import `cai`: it would set what is measured."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.randint(100, 40_000, (ROWS, 32), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        out = model(input_ids=ids, use_cache=True)
        step = ids[:, -1:]
        for count in (4, STEPS):  # the first ones warm up
            started = time.perf_counter()
            for _ in range(count):
                out = model(input_ids=step, past_key_values=out.past_key_values, use_cache=True)
            decoding = count / (time.perf_counter() - started)
    batch = torch.randint(100, 40_000, (4, LENGTH), generator=torch.Generator().manual_seed(1))
    for count in (1, 2):
        started = time.perf_counter()
        for _ in range(count):
            model(input_ids=batch, labels=batch).loss.backward()
            model.zero_grad()
        training = count / (time.perf_counter() - started)
    return {"decoding": decoding, "decoded": decoding * ROWS, "training": training, "trained": training * batch.numel()}


def measured(setting: str, folder: str) -> Rates:
    """Measure in a process with a setting's environment."""
    names = {name for values in SETTINGS.values() for name in values}
    environment = {k: v for k, v in os.environ.items() if k not in names} | SETTINGS[setting]
    done = subprocess.run([sys.executable, __file__, "--child", folder], env=environment, check=True, capture_output=True, text=True)
    found: Rates = json.loads(done.stdout.splitlines()[-1])
    return found


@contextmanager
def neighbour(threads: int) -> Iterator[None]:
    """Keep some threads' worth of processor busy for the block."""
    spin = [sys.executable, "-c", "while True: pass"]
    spinning = [subprocess.Popen(spin) for _ in range(threads)]
    try:
        yield
    finally:
        for process in spinning:
            process.kill()
            process.wait()


def measure(repeats: int) -> dict[tuple[str, int], list[Rates]]:
    """Return each setting's rates beside no and beside two busy threads, the settings taking turns."""
    from cai.models.local.embedded import embedded_model_dir

    folder = str(embedded_model_dir())
    found: dict[tuple[str, int], list[Rates]] = {(s, n): [] for s in SETTINGS for n in (0, 2)}
    for _ in range(repeats):
        for busy in (0, 2):
            with neighbour(busy):
                for setting in SETTINGS:
                    found[setting, busy].append(measured(setting, folder))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--child", metavar="FOLDER", help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.child:
        print(json.dumps(child(a.child)))
        return
    for (setting, busy), rates in measure(a.repeats).items():
        shown = {k: [round(f(r[k] for r in rates), 2) for f in (min, statistics.median, max)] for k in rates[0]}
        print(json.dumps({"setting": setting, "busy_threads": busy, "least_median_most": shown}), flush=True)


if __name__ == "__main__":
    main()
