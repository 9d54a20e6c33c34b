"""What a draft does, asked of a model: one prompt through critique and revision, or a sample under the old and the new text."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path

from cai.core.console import Reporter
from cai.core.manifest import read_manifest
from cai.core.workspace import RunDirectory, Workspace
from cai.errors import ConstitutionError, DataError
from cai.records import Constitution, PromptKind
from cai.session import Session, settings
from cai.studio.jobs import Job
from cai.workbench.consequences import compare_on_sample
from cai.workbench.trial import chosen, steps


@dataclass(frozen=True, slots=True)
class TrialRequest:
    """Which model is asked, and with what settings: None for the defaults."""

    model: str | None = None
    recipe: Path | None = None

    def session(self, workspace: Workspace, reporter: Reporter) -> Session:
        """Return a session with these settings."""
        return Session(recipe=settings(model=self.model, recipe=self.recipe, name="studio"), workspace=workspace, reporter=reporter)


def preview(
    constitution: Constitution, prompt: str, kind: PromptKind, principle: str, workspace: Workspace, asking: TrialRequest
) -> Callable[[Job], Awaitable[None]]:
    """Return the work of one prompt through the loop; its steps become the job's parts as they come.

    Args:
        constitution: the draft.
        prompt: what a user would write.
        kind: of prompt, which decides what applies.
        principle: the only one to use; empty for those that the prompt draws.
        workspace: has the call store.
        asking: which model.

    Raises:
        ConstitutionError: there is no such principle.
    """
    used = chosen(constitution, [principle] if principle else [])

    async def work(job: Job) -> None:
        job.note = "asking the model"
        async with asking.session(workspace, job) as session:
            async for step in steps(prompt, used, session, kind=kind):
                job.parts.append(step)

    return work


def comparison(
    saved: Constitution, draft: Constitution, run: RunDirectory | None, sample: int, workspace: Workspace, asking: TrialRequest
) -> Callable[[Job], Awaitable[None]]:
    """Return the work of comparing a draft with what it was made from; the consequences become the job's only part.

    Args:
        saved: the constitution's file. Where it says the same as the draft, a run's own constitution is the old side.
        draft: the new side.
        run: take model, answers and pairs from it; None: `sample` prompts of the workspace, answered afresh.
        sample: prompts.
        workspace: has the call store and the prompts.
        asking: which model, where no run is named.

    Raises:
        ConstitutionError: nothing has changed.
    """
    before = saved
    if saved == draft and run is not None:
        before = replace(constitution_of(run), description=draft.description)
    if before == draft:
        against = "the saved file" if run is None else f"the saved file and what run {run.path.name} used"
        raise ConstitutionError(f"Nothing to compare: the text in the editor says the same as {against}. Change a principle first.")

    async def work(job: Job) -> None:
        job.note = "asking the model"
        opened = asking.session(workspace, job) if run is None else Session(recipe=settings(run=run), workspace=workspace, reporter=job)
        async with opened as session:
            job.parts.append(await compare_on_sample(before, draft, session, sample, run=run))

    return work


def constitution_of(run: RunDirectory) -> Constitution:
    """Return the constitution that a run used; its description isn't kept. Raises `DataError` where its manifest has none."""
    manifest = read_manifest(run.manifest)
    if manifest is None or manifest.constitution is None:
        raise DataError(f"{run.path.name}: its manifest holds no constitution yet")
    card = manifest.constitution
    return Constitution(card.id, card.name, "", card.principles)
