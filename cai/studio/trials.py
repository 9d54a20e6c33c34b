"""Trials of a draft with a model: critique and revision of one prompt, or a comparison of the old and the new text on a sample."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from cai.constitution.editing import UNWRITTEN, set_fields
from cai.constitution.load import language_of
from cai.constitution.proposals import WORDED
from cai.core.console import Reporter
from cai.core.manifest import read_manifest
from cai.core.workspace import RunDirectory, Workspace
from cai.errors import ConstitutionError, DataError, ReplyError
from cai.models.local.embedded import EMBEDDED
from cai.recipe import Recipe
from cai.records import Constitution, PromptKind
from cai.session import Session
from cai.studio.drafts import Drafts
from cai.studio.jobs import Job
from cai.studio.principle_form import PrincipleForm
from cai.workbench.consequences import compare_on_sample
from cai.workbench.settings import in_language, settings
from cai.workbench.trial import chosen, steps
from cai.workbench.wording import Wording, draft_wording, refuse_untranslated


@dataclass(frozen=True)
class TrialRequest:
    """Model and settings of trials; None for the defaults."""

    model: str | None = None
    recipe: Path | None = None
    language: str = "en"
    """Language of the constitution, which chooses the templates; a recipe says itself what templates to use."""

    @cached_property
    def settings(self) -> Recipe:
        """The settings, read once. Raises as `cai.workbench.settings` does."""
        return settings(model=self.model, recipe=self.recipe, name="studio")

    @property
    def is_embedded(self) -> bool:
        """Whether the model is the embedded one, whose drafts are too often about something else to be made without being asked for."""
        return self.settings.model.path == EMBEDDED

    def session(self, workspace: Workspace, reporter: Reporter) -> Session:
        """Return a session with these settings."""
        used = self.settings if self.recipe is not None else in_language(self.settings, self.language, workspace)
        return Session(recipe=used, workspace=workspace, reporter=reporter)


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


def wording(drafts: Drafts, name: str, index: int | None, workspace: Workspace, asking: TrialRequest) -> Callable[[Job], Awaitable[None]]:
    """Return a job that drafts requests and questions from statements. Each principle's are one of the job's parts, for `with_wording`.

    Args:
        drafts: the constitutions.
        name: the constitution.
        index: number of the principle in it; None: all that have only a statement.
        workspace: workspace with the call store and the templates.
        asking: model and settings.

    Raises:
        ConstitutionError: the text is not a valid constitution, or has nothing to draft.
    """
    _, draft = drafts.versions(name)
    if index is not None and index >= len(draft.principles):
        raise ConstitutionError(f"{name} has no principle {index + 1}")
    todo = [p for p in draft.principles if not p.own_wording] if index is None else [draft.principles[index]]
    todo = [p for p in todo if p.statement != UNWRITTEN]
    if not todo:
        raise ConstitutionError(
            "Write the statement first." if index is not None else "Every principle has requests or questions of its own."
        )

    async def work(job: Job) -> None:
        async with asking.session(workspace, job) as session:
            refuse_untranslated(session, language_of(drafts.path(name)))
            for number, principle in enumerate(todo, 1):
                job.note = f"drafting for {principle.id} ({number} of {len(todo)})"
                try:
                    found = await draft_wording(session, principle)
                except ReplyError:
                    found = Wording(principle.id, principle.statement, {}, WORDED, session.model.engine.name)
                job.parts.append(found)

    return work


def with_wording(text: str, forms: Sequence[PrincipleForm], found: Wording) -> str:
    """Return the text with what was drafted for a principle, in place of nothing or of an earlier draft. What a person wrote stays.

    Raises:
        ConstitutionError: no principle has the statement that it was drafted from.
    """
    same = [(i, form) for i, form in enumerate(forms) if form.statement == found.statement]
    if not same:
        raise ConstitutionError(f"{found.principle_id} was changed while the model wrote. Draft it again.")
    where, form = next(((i, form) for i, form in same if form.id == found.principle_id), same[0])  # else it was renamed
    new = {field: said for field, said in found.texts.items() if field not in form.wording or field in form.drafted}
    return set_fields(text, where, new, found.model) if new else text
