"""Puts the shipped constitutions, prompts and recipes into the wheel, as `cai/_workspace`, for `cai init`. The rest is pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
SHIPPED = (
    "constitution/*.yaml",
    "constitution/schema.json",
    "constitution/examples/*.yaml",
    "prompts/*.jsonl",
    "prompts/audit/*.jsonl",
    "prompts/README.md",
    "prompts/templates/*.txt",
    "prompts/templates/*/*.txt",
    "runs/*.yaml",
)


class BuildWithWorkspace(build_py):
    """Builds the package, and beside its modules a copy of the workspace."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:  # the checkout is the workspace
            return
        for file in (f for pattern in SHIPPED for f in ROOT.glob(pattern)):
            copy = Path(self.build_lib) / "cai" / "_workspace" / file.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)


setup(cmdclass={"build_py": BuildWithWorkspace})
