"""Trials of a draft with a model: critique and revision of one prompt, or a comparison of the old and the new text on a sample."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path

from cai.constitution.editing import set_fields
from cai.core.console import Reporter
from cai.core.manifest import read_manifest
from cai.core.workspace import RunDirectory, Workspace
from cai.errors import ConstitutionError, DataError
from cai.records import Constitution, PromptKind
from cai.session import Session
from cai.studio.drafts import Drafts
from cai.studio.jobs import Job
from cai.workbench.consequences import compare_on_sample
from cai.workbench.settings import settings
from cai.workbench.trial import chosen, steps
from cai.workbench.wording import draft_wording


@dataclass(frozen=True, slots=True)
class TrialRequest:
    """Model and settings of trials; None for the defaults."""

    model: str | None = None
    recipe: Path | None = None

    def session(self, workspace: Workspace, reporter: Reporter) -> Session:
        """Return a session with these settings."""
        return Session(recipe=settings(model=self.model, recipe=self.recipe, name="studio"), workspace=workspace, reporter=reporter)


def preview(
    constitution: Constitution, prompt: str, kind: PromptKind, principle: str, workspace: Workspace, asking: TrialRequest
) -> Callable[[Job], Awaitable[None]]:
    """Return a job that critiques and revises the response to one prompt; each step is added to the job's parts.

    Args:
        constitution: the draft.
        prompt: text of the prompt.
        kind: kind of prompt, which decides the principles that apply.
        principle: id of the only principle to use; empty: the principles that the prompt draws.
        workspace: workspace with the call store.
        asking: model and settings.

    Raises:
        ConstitutionError: the principle does not exist.
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
    """Return a job that compares a draft with the saved constitution; the result is the job's only part.

    Args:
        saved: the saved constitution. If it equals the draft, the draft is compared with the run's constitution.
        draft: the new constitution.
        run: run whose model, responses and pairs are used; None: new responses to `sample` prompts of the workspace.
        sample: number of prompts.
        workspace: workspace with the call store and the prompts.
        asking: model and settings, if no run is given.

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
    """Return the constitution that a run used, without its description. Raises `DataError` if the manifest has none."""
    manifest = read_manifest(run.manifest)
    if manifest is None or manifest.constitution is None:
        raise DataError(f"{run.path.name}: the manifest has no constitution yet")
    card = manifest.constitution
    return Constitution(card.id, card.name, "", card.principles)


def wording(drafts: Drafts, name: str, index: int, workspace: Workspace, asking: TrialRequest) -> Callable[[Job], Awaitable[None]]:
    """Return a job that drafts a principle's requests and questions from its statement, and writes them into the draft of the text.

    Args:
        drafts: the constitutions.
        name: the constitution.
        index: number of the principle in it.
        workspace: workspace with the call store and the templates.
        asking: model and settings.

    Raises:
        ConstitutionError: the text is not a valid constitution, or has no such principle.
    """
    _, draft = drafts.versions(name)
    if index >= len(draft.principles):
        raise ConstitutionError(f"{name} has no principle {index + 1}")
    principle = draft.principles[index]

    async def work(job: Job) -> None:
        job.note = "asking the model"
        async with asking.session(workspace, job) as session:
            found = await draft_wording(session, principle)

        def put(text: str) -> str:
            where = next((i for i, form in enumerate(drafts.open(name).form) if form.id == principle.id), None)
            if where is None or drafts.open(name).form[where].statement != principle.statement:
                raise ConstitutionError(f"{principle.id} was changed while the model wrote. Draft it again.")
            return set_fields(text, where, found.texts, found.model)

        drafts.edit(name, drafts.open(name).version, put)
        job.parts.append(found)

    return work
