"""Runs of `cai` that begin at once: forked from a process that has imported all that they need. A drill of a hundred kills needs it.

    python -m tests.drills.forked

Reads one command a line, as JSON: folder, arguments, and a file for what it prints. Prints the process's id, and in the end its exit code.
"""

import json
import os
import select
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.workspaces import ROOT


class Forked:
    """A process that forks runs, with one hash seed. One run at a time."""

    def __init__(self, seed: str) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": seed, "COLUMNS": "80"}
        command = [sys.executable, "-m", "tests.drills.forked"]
        self._process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        self.errors = ""

    def start(self, folder: Path, *args: str) -> int:
        """Start `cai` with these arguments in a folder; return the process's id."""
        self._log = folder.parent / "output.txt"
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([str(folder), args, str(self._log)]).encode() + b"\n")
        return self._number()

    def ended(self) -> bool:
        """Whether the run has ended."""
        return bool(select.select([self._process.stdout], [], [], 0)[0])

    def wait(self) -> int:
        """Return the exit code once it has ended; what it printed is then in `errors`."""
        code = self._number()
        self.errors = self._log.read_text(errors="replace")
        return code

    def close(self) -> None:
        """End the process."""
        self._process.communicate()

    def _number(self) -> int:
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())


def _run(folder: str, args: list[str], log: str) -> None:
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(out, stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(folder)
    sys.argv = ["cai", *args]
    from cai.cli import main

    main()


def _serve() -> None:
    import peft  # noqa: F401
    import torch  # noqa: F401
    import transformers  # noqa: F401
    import trl  # noqa: F401

    import cai.train.dpo
    import cai.train.reward.train
    import cai.train.rl.ppo
    import cai.train.sft  # noqa: F401

    for line in iter(sys.stdin.buffer.readline, b""):
        job: Any = json.loads(line)
        if (pid := os.fork()) == 0:
            _run(*job)
            sys.exit(0)
        os.write(1, b"%d\n" % pid)
        os.write(1, b"%d\n" % os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


if __name__ == "__main__":
    _serve()
