"""A session opens a workspace's call store, templates, models, judge and reward models once, hands them out, and closes them.

    async with Session(model="embedded") as s:
        trace = await s.critique_and_revise("How do I pick a lock?", load_constitution("general"))
        judgment = await s.judge(load_constitution("general"))(trace.pair)

Stages, commands and the studio work through a session too. Nothing else opens a store or an engine. The set-up check and `cai plan` ask no
model, so they read the templates without a session.
"""

from collections.abc import Awaitable, Callable, Sequence
from operator import attrgetter
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

from msgspec.structs import replace

from cai.core.console import Reporter
from cai.core.flow import Failed, in_words, run_items
from cai.core.interrupt import run_interruptible
from cai.core.plugins import unknown
from cai.core.workspace import Workspace, find_workspace, shipped_workspace
from cai.data.prompts import load_all
from cai.errors import DataError, ModelError, RecipeError
from cai.generate.critique import Writer, critique_and_revise, respond
from cai.generate.pairs import PairTask, sample_pair
from cai.ids import content_hash
from cai.judge.calibration import calibration_of
from cai.judge.choices import mass_warning
from cai.judge.judge import Judge
from cai.judge.probe import Probe, probe_of
from cai.judge.protocols import PROTOCOLS
from cai.models.base import Engine, TextModel, Usage
from cai.models.naming import spec_from_name
from cai.models.opening import open_engine, release_memory
from cai.models.placement import placement_of
from cai.models.store import CallStore
from cai.models.templates import Template, load_named_templates, load_templates
from cai.recipe import FeedbackConfig, ModelSpec, PromptSource, Recipe, RewardConfig, load_recipe
from cai.records import Constitution, Failure, Message, Prompt, PromptKind, Response, ResponsePair, RevisionTrace

if TYPE_CHECKING:
    from cai.train.reward.ensemble import RewardEnsemble

T = TypeVar("T")
R = TypeVar("R")


class Session:
    """Models over one call store, with a recipe's settings.

    Used with `async with`, it opens the model and the judge at once, so that a wrong address fails early. Used with `with`, it opens no
    model: call `open_model` and `open_judge` inside an event loop, and `close_models` before that loop ends.

    Args:
        model: answers, critiques and revises: `embedded`, a folder, a Hub id, an adapter's folder, or a server's `URL#MODEL`. None: the
            recipe's.
        judge: compares responses; named in the same way. None: the recipe's judge, or else the model itself.
        recipe: the settings: a recipe, or its file. None: the defaults.
        workspace: has the call store, the templates and the prompts. None: the one around the current folder; outside of any, the
            templates that `cai` brings, and calls are kept in memory only.
        reporter: shows progress; silent if not given.
        keep_calls: False keeps calls in memory only, as for a chat.
        opener: opens the engine of a model; give your own to ask something that `cai` doesn't know.

    Raises:
        CaiError: the recipe, the templates or a model's name can't be read.
    """

    def __init__(
        self,
        model: str | None = None,
        *,
        judge: str | None = None,
        recipe: Recipe | Path | str | None = None,
        workspace: Workspace | Path | str | None = None,
        reporter: Reporter | None = None,
        keep_calls: bool = True,
        opener: Callable[[ModelSpec], Awaitable[Engine]] | None = None,
    ) -> None:
        self.recipe = with_models(_as_recipe(recipe), model, judge)
        found = _as_workspace(workspace)
        self.workspace = found or Workspace(shipped_workspace())
        templates = load_templates(self.workspace.root / self.recipe.templates)
        self.templates = templates.placed(placement_of(self.recipe.model, self.workspace))
        self.judge_templates = templates.placed(placement_of(self.recipe.judge, self.workspace))
        self.reporter = reporter or Reporter()
        self.stage = self.recipe.name
        """What calls are filed under in the store."""
        self.failures: list[Failure] = []
        """Items that could not be answered or judged."""
        self.opened: list[tuple[TextModel, ModelSpec]] = []
        """Every model handed out, for counting what was asked."""
        self._store_path = found.store_path if found is not None and keep_calls else None
        self._store: CallStore | None = None
        self._open_engine = opener or (lambda spec: open_engine(spec, self.reporter.loading))
        self._engines: dict[str, Engine] = {}
        self._model: TextModel | None = None
        self._judge_model: TextModel | None = None

    def __enter__(self) -> Self:
        self._store = CallStore(self._store_path)
        self._store.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        store, self._store = self._store, None
        if store is not None:
            store.__exit__(kind, error, trace)

    async def __aenter__(self) -> Self:
        self.__enter__()
        try:
            self._model = self._judge_model = await self.open_model()
            if self.recipe.judge != self.recipe.model:
                self._judge_model = await self.open_model(self.recipe.judge)
        except BaseException as e:
            await self.__aexit__(type(e), e, e.__traceback__)
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            await self.close_models()
        finally:
            self.__exit__(kind, error, trace)

    @property
    def store(self) -> CallStore:
        """The call store. Raises `ModelError` outside a `with` block."""
        if self._store is None:
            raise ModelError("the session is not open: use it in `async with cai.Session(...) as session:`")
        return self._store

    @property
    def model(self) -> TextModel:
        """The model, opened by `async with`. Raises `ModelError` where it is not open."""
        return _open(self._model, "model", "open_model")

    @property
    def judge_model(self) -> TextModel:
        """The model that judges. Raises `ModelError` where it is not open."""
        return _open(self._judge_model, "judge", "open_judge")

    @property
    def usage(self) -> Usage:
        """Calls and tokens of all models together, so far."""
        models = {id(m): m.usage for m, _ in self.opened}.values()
        counts = ("made", "reused", "prompt_tokens", "completion_tokens")
        return Usage(*(sum(getattr(u, name) for u in models) for name in counts))

    def run(self, work: Callable[[Self], Awaitable[T]], name: str, *, open_models: bool = True) -> T:
        """Open the session, run some work and close it, from code without an event loop. Ctrl-C lets calls in flight be answered.

        Args:
            work: is given the open session.
            name: of the work, for progress.
            open_models: open model and judge first; False leaves that to the work.
        """

        async def opened() -> T:
            if open_models:
                async with self:
                    return await work(self)
            with self:
                try:
                    return await work(self)
                finally:
                    await self.close_models()

        with self.reporter.stage(name):
            found = run_interruptible(opened(), self.reporter)
        for model, _ in self.opened:
            if warning := mass_warning(model.choice_mass.mean, model.engine.name):
                self.reporter.warn(warning)
        return found

    async def open_model(self, spec: ModelSpec | None = None) -> TextModel:
        """Return a model over the call store. Equal specs share one engine.

        Args:
            spec: which model; None: the recipe's.

        Raises:
            ModelError: it isn't there, or its server doesn't answer.
        """
        spec = self.recipe.model if spec is None else spec
        key = content_hash(replace(spec, placement="system"))
        if key not in self._engines:
            self._engines[key] = await self._open_engine(spec)
        model = TextModel(self._engines[key], self.store, self.stage, on_reply=self.reporter.call)
        self.opened.append((model, spec))
        return model

    async def open_judge(self, constitution: Constitution, *, recipe_hash: str = "") -> Judge:
        """Open the judge's model, and return the judge. Takes and raises what `judge` does, and `ModelError`."""
        self._judge_model = await self.open_model(self.recipe.judge)
        return self.judge(constitution, recipe_hash=recipe_hash)

    def judge(self, constitution: Constitution, *, protocol: str | None = None, recipe_hash: str = "") -> Judge:
        """Return a judge: `judgment = await session.judge(constitution)(pair)`.

        Args:
            constitution: its principles are asked.
            protocol: how to ask; None: the recipe's, with its calibration if it names one.
            recipe_hash: for the records' provenance.

        Raises:
            RecipeError: there is no such protocol, or the calibration or the probe was fitted for another judge.
            DataError: the calibration or the probe can't be read.
            ModelError: the judge's model is not open.
        """
        config = with_protocol(self.recipe, protocol).feedback
        calibration = calibration_of(config, self.workspace.root) if protocol in (None, self.recipe.feedback.protocol) else None
        probe = self.probe_for(config)
        return Judge(config, constitution, self.judge_model, self.judge_templates, self.recipe.seed, recipe_hash, calibration, probe)

    def probe_for(self, config: FeedbackConfig) -> Probe | None:
        """Return the probe of a protocol that reads hidden states; None for the others. Raises `DataError` where it can't be read."""
        return probe_of(config, self.workspace.root) if PROTOCOLS.get(config.protocol).reads_states else None

    def named_templates(self, *names: str) -> list[Template]:
        """Return templates of the recipe's folder that no stage of a run needs. Raises `TemplateError` where one can't be read."""
        place = placement_of(self.recipe.model, self.workspace)
        return [t.placed(place) for t in load_named_templates(names, self.workspace.root / self.recipe.templates)]

    def writer(self, model: TextModel, recipe_hash: str = "") -> Writer:
        """Return a model as it writes: with the session's templates and seed."""
        return Writer(model, self.templates, self.recipe.seed, recipe_hash)

    async def respond(self, prompt: str | Prompt) -> Response:
        """Return the model's response to a prompt. Raises `ReplyError` where the model says nothing."""
        return await respond(as_prompt(prompt), self.writer(self.model), self.recipe.respond.sampling)

    async def critique_and_revise(
        self, prompt: str | Prompt | Response, constitution: Constitution, *, rounds: int | None = None
    ) -> RevisionTrace:
        """Answer a prompt, then critique and revise the response under principles of the constitution (Bai et al. 2022, §3).

        Args:
            prompt: what is asked, or a response that is there already.
            constitution: one principle is drawn for each round.
            rounds: critiques and revisions; None: the recipe's.

        Returns:
            The trace: `trace.final` is the last revision, `trace.pair` the response against it, to be judged.

        Raises:
            ReplyError: the model gave no usable answer.
            ConstitutionError: no principle applies to the prompt's kind.
        """
        response = prompt if isinstance(prompt, Response) else await self.respond(prompt)
        config = self.recipe.critique
        kinds = tuple(dict.fromkeys((*config.kinds, response.prompt.kind)))
        config = replace(config, kinds=kinds, rounds=config.rounds if rounds is None else rounds)
        return await critique_and_revise(response, constitution, self.writer(self.model), config)

    def load_prompts(self, sources: Sequence[PromptSource]) -> tuple[Prompt, ...]:
        """Return the prompts of some sources, and warn about rows that are none. Raises `DataError` where a source has no prompt."""
        loaded = load_all(sources, self.workspace.root, self.recipe.seed)
        if loaded.failures:
            first = loaded.failures[0]
            self.reporter.warn(f"{len(loaded.failures)} rows are no prompts, the first: {first.item_id}: {first.reason}")
        return loaded.prompts

    async def sample_pair(self, prompt: str | Prompt, number: int = 0) -> ResponsePair:
        """Return two responses to one prompt, to be judged.

        Args:
            prompt: what is asked.
            number: another number gives another pair.

        Raises:
            ReplyError: a response is empty, or both are the same.
        """
        return await sample_pair(PairTask(as_prompt(prompt), number), self.writer(self.model), self.recipe.pairs)

    async def each(
        self,
        items: Sequence[T],
        work: Callable[[T], Awaitable[R]],
        what: str,
        item_id: Callable[[T], str] = attrgetter("id"),
        *,
        failure_of: Callable[[R], Failed | None] = lambda result: None,
        may_all_fail: bool = False,
    ) -> list[R]:
        """Run items through models within the recipe's limits. Those that fail are in `failures`.

        Args:
            items: any number; at most `recipe.window` are in flight.
            work: asks the models about one.
            what: names the items in progress and in failures.
            item_id: names an item in a failure; by default its `id`.
            failure_of: the reason and details where a result itself is a failure.
            may_all_fail: whether any number of failures is acceptable; by default the recipe's `max_failure_fraction` is.

        Raises:
            ModelError: too many items failed, or a model can't go on.
        """
        self.reporter.progress(0, len(items), what)
        flow = run_items(
            items,
            work,
            window=self.recipe.window,
            max_failure_fraction=1.0 if may_all_fail else self.recipe.max_failure_fraction,
            may_all_fail=may_all_fail,
            stage=self.stage,
            failures=self.failures,
            failure_of=failure_of,
            on_progress=lambda done: self.reporter.progress(done, len(items), what),
            item_id=item_id,
        )
        return [result async for result in flow]

    def warn_of_failures(self) -> None:
        """Warn of items that failed, with the reasons."""
        if self.failures:
            self.reporter.warn(f"{len(self.failures)} items failed: {in_words(self.failures)}")

    async def load_rewards(self, folders: Sequence[Path], config: RewardConfig | None = None) -> "RewardEnsemble":
        """Load reward models as one ensemble. Every open model is closed first: one base is in memory at a time.

        Args:
            folders: what `train_reward` wrote, one per member.
            config: how members' scores become one; None: the recipe's.

        Raises:
            ModelError: one can't be loaded.
        """
        await self.close_models()
        from cai.train.reward.ensemble import load_ensemble

        config = config or self.recipe.reward
        return load_ensemble(list(folders), None, config.aggregate, config.uncertainty_penalty)

    async def close_models(self) -> None:
        """Close every model and free its memory. What they were asked stays counted."""
        self._model = self._judge_model = None
        engines = list(self._engines.values())
        self._engines.clear()
        for engine in engines:
            await engine.close()
        if engines:
            release_memory()


def as_prompt(text: str | Prompt, kind: PromptKind = "other") -> Prompt:
    """Return a text as a prompt; the same text always draws the same principles.

    Raises:
        DataError: it is empty.
    """
    if isinstance(text, Prompt):
        return text
    if not text.strip():
        raise DataError("the prompt is empty; give it the text that a user would write")
    return Prompt(content_hash(text), kind, (Message("user", text),), "session")


def with_protocol(recipe: Recipe, protocol: str | None) -> Recipe:
    """Return the recipe with another judging protocol; None changes nothing. Raises `RecipeError` where there is no such protocol."""
    if protocol is None:
        return recipe
    if protocol not in PROTOCOLS.names():
        raise RecipeError(f"--protocol {protocol}: {unknown(PROTOCOLS.kind, protocol)}")
    return replace(recipe, feedback=recipe.feedback.by(protocol))


def with_models(recipe: Recipe, model: str | None, judge: str | None) -> Recipe:
    """Return the recipe with another model and judge, by their names; None changes nothing."""
    if model is not None:
        recipe = replace(recipe, model=spec_from_name(model, recipe.model))
    if judge is not None:
        recipe = replace(recipe, feedback=replace(recipe.feedback, judge=spec_from_name(judge, recipe.judge)))
    return recipe


def _as_recipe(recipe: Recipe | Path | str | None) -> Recipe:
    if isinstance(recipe, Recipe):
        return recipe
    return Recipe(name="session") if recipe is None else load_recipe(Path(recipe))


def _as_workspace(workspace: Workspace | Path | str | None) -> Workspace | None:
    if isinstance(workspace, Workspace):
        return workspace
    if workspace is not None:
        return find_workspace(Path(workspace))
    try:
        return find_workspace(Path.cwd())
    except RecipeError:
        return None


def _open(model: TextModel | None, name: str, opener: str) -> TextModel:
    if model is None:
        raise ModelError(f"the session's {name} is not open: use `async with cai.Session(...)`, or call `{opener}` first")
    return model
