"""What a stage is given."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from cai.core.console import Reporter
from cai.core.journal import Journal
from cai.core.jsonl import read_records
from cai.core.manifest import Manifest
from cai.core.workspace import RunDirectory
from cai.generate.critique import Writer
from cai.judge.judge import Judge
from cai.models.templates import Templates
from cai.pipeline.tracking import Tracking
from cai.recipe import ModelSpec, Recipe
from cai.records import Constitution, Failure
from cai.session import Session
from cai.train.processes import ProcessGroup

T = TypeVar("T")


@dataclass
class Context:
    """Everything that a stage works with: session, run directory, constitution, manifest, process group and tracker."""

    session: Session
    run: RunDirectory
    constitution: Constitution
    manifest: Manifest
    processes: ProcessGroup = field(default_factory=ProcessGroup)
    tracking: Tracking = field(default_factory=Tracking)
    stage: str = ""
    settings_hash: str = ""
    """Hash of the current stage's settings and seed, for the provenance of records."""
    fingerprint: str = ""
    """Hash of everything that the current stage's outputs depend on."""
    journals: list[Journal[Any]] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    """Failures of the current stage; the session appends to the same list."""

    @property
    def recipe(self) -> Recipe:
        return self.session.recipe

    @property
    def root(self) -> Path:
        """Folder of the workspace."""
        return self.session.workspace.root

    @property
    def templates(self) -> Templates:
        return self.session.templates

    @property
    def reporter(self) -> Reporter:
        return self.session.reporter

    def begin(self, stage: str, fingerprint: str, settings_hash: str) -> None:
        """Start a stage, with fresh counts of calls and failures."""
        self.stage = self.session.stage = stage
        self.fingerprint, self.settings_hash = fingerprint, settings_hash
        self.failures = self.session.failures = []
        self.session.opened.clear()

    def journal(self, name: str, result_type: Any) -> Journal[Any]:
        """Return the current stage's journal of that name. It is removed when the stage is done."""
        self.journals.append(Journal(self.run.unfinished / f"{name}.jsonl", self.fingerprint, result_type))
        return self.journals[-1]

    def read(self, name: str, record_type: type[T]) -> Iterator[T]:
        """Yield the records of one of the run's files."""
        return read_records(self.run.data(name), record_type)

    def adapted(self, name: str) -> ModelSpec:
        """Return the spec of the trained model with one of the run's adapters."""
        return msgspec.structs.replace(self.recipe.trained, adapter=str(self.run.model(name)))

    async def writer(self, spec: ModelSpec | None = None) -> Writer:
        """Open a model for sampling; None: the run's model."""
        return self.session.writer(await self.session.open_model(spec), self.settings_hash)

    async def judge(self) -> Judge:
        """Open the run's judge, with its calibration if the recipe names one."""
        return await self.session.open_judge(self.constitution, recipe_hash=self.settings_hash)
