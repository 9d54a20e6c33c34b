"""Adherence per principle: how often responses to held-out prompts follow each principle, by model.

The base model answers once more with the principle in context (`told`), which shows what it is able to do. A principle's check decides
whether a response follows it; without a check, a judge decides, if one was shown to beat the baselines on human labels. Other principles
are not measured. `adherence:ID` is a rate, and `adherence:ID_change` its change from `base`; `control:ID` is a principle that wasn't
trained on.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from statistics import fmean

from cai.core.text.checks import checks_for, follows
from cai.errors import ReplyError
from cai.evaluate.paired import change_result, rate, shared_ids
from cai.evaluate.policies import AGAINST, corrected
from cai.generate.critique import as_sampling, kept_text
from cai.generate.distill import Told
from cai.ids import derive_seed, split_fraction
from cai.judge.adherence import principle_log_odds
from cai.judge.judge import Judge
from cai.models.base import TextModel
from cai.recipe import ModelSpec, Placement, SamplingSpec
from cai.records import Constitution, EvalResult, Principle, Prompt, PromptKind, Provenance, Response
from cai.session import Session

TOLD = "told"
"""Name of the base model with one principle in context."""
BY_JUDGE = "by judge"
"""Note of a rate that the judge decided."""
SELDOM = 0.5
"""Rate below which a principle counts as seldom followed."""
KINDS: tuple[PromptKind, ...] = ("harmful", "borderline", "helpful")
Followed = Mapping[str, Mapping[str, bool]]
"""Whether a response follows a principle, by principle, then by prompt."""


async def measure_adherence(
    session: Session,
    constitution: Constitution,
    controls: Constitution | None,
    answers: Mapping[str, Sequence[Response]],
    base: ModelSpec,
    judge: Judge | None,
) -> list[EvalResult]:
    """Measure adherence per principle of every model, and of the base model with each principle in context.

    Args:
        controls: principles that weren't trained on, or None.
        answers: model name to its responses, with `base` among them for changes.
        judge: decides where a principle has no check; None leaves those principles out.

    Returns:
        Rates and changes, with Holm's correction over the principles for each model. A principle that is about some kinds of prompts is
        measured on the others too, as a control named `ID elsewhere`, if the base model seldom follows it there: what a model learned for
        some prompts it may do on all.
    """
    principles = measurable(constitution, judge is not None)
    control = [] if controls is None else measurable(controls, judge is not None)
    spread = [p for p in map(elsewhere, principles) if p is not None]
    both, config = [*principles, *control], session.recipe.evaluate
    verdicts = {model: await followed(session, [*both, *spread], responses, judge) for model, responses in answers.items()}
    control += [p for p in spread if fmean(verdicts.get(AGAINST, {}).get(p.id, {}).values() or [1.0]) < SELDOM]
    if config.told and both and AGAINST in answers:
        model = await session.open_model(base)
        said = await tell(session, model, both, answers[AGAINST], config.told, session.recipe.distill.placement, config.sampling)
        parts = [await followed(session, [p], said[p.id], judge) for p in both]
        verdicts[TOLD] = {p.id: part[p.id] for p, part in zip(both, parts, strict=True)}
    measured = {p.id for p in (*principles, *control)}
    by_judge = {p.id for p in (*principles, *control) if not p.check}
    results = []
    for name, found in verdicts.items():
        mine = {principle_id: verdict for principle_id, verdict in found.items() if principle_id in measured}
        results += adherence_results(name, mine, None if name == AGAINST else verdicts.get(AGAINST), [p.id for p in control], by_judge)
    return corrected(results)


async def tell(
    session: Session,
    model: TextModel,
    principles: Sequence[Principle],
    untold: Sequence[Response],
    limit: int,
    placement: Placement,
    sampling: SamplingSpec,
) -> dict[str, list[Response]]:
    """Return a model's responses under each principle in turn.

    Args:
        principles: one is in context at a time.
        untold: the model's responses without principles; a principle uses the prompts of its kinds.
        limit: maximum number of prompts per principle, chosen by hash.
    """
    ask = Told(model, session.templates, placement, as_sampling(sampling))
    seed = session.recipe.seed

    async def work(item: tuple[Principle, Response]) -> tuple[str, Response]:
        principle, response = item
        prompt = response.prompt
        item_seed = derive_seed(seed, prompt.id, "told", 0)
        completion, _ = await ask(prompt, (principle,), item_seed, response)
        provenance = Provenance(model.fingerprint, (principle.id,), ask.template.hash, item_seed)
        return principle.id, Response(prompt, kept_text(completion), completion.truncated, provenance)

    by_id = {r.prompt.id: r for r in untold}
    prompts = [r.prompt for r in untold]
    chosen = [(p, by_id[prompt.id]) for p in principles for prompt in prompts_for(p, prompts, limit, seed)]
    found: dict[str, list[Response]] = {p.id: [] for p in principles}
    for principle_id, response in await session.each(
        chosen, work, "answers under a principle", lambda i: f"{i[0].id}:{i[1].prompt.id}:told"
    ):
        found[principle_id].append(response)
    return found


def elsewhere(principle: Principle) -> Principle | None:
    """Return a principle with a check as a control on the kinds of prompts that it isn't about; None if there are none."""
    kinds: tuple[PromptKind, ...] = tuple(kind for kind in KINDS if not principle.applies(kind))
    return replace(principle, id=f"{principle.id} elsewhere", applies_to=kinds) if kinds and principle.check else None


def prompts_for(principle: Principle, prompts: Sequence[Prompt], limit: int, seed: int) -> list[Prompt]:
    """Return at most `limit` prompts of a principle's kinds, chosen by hash, in their order. A check narrows the kinds further."""
    mine = [p for p in prompts if (checks_for(principle, p.kind) if principle.check else principle.applies(p.kind))]
    chosen = sorted(mine, key=lambda p: split_fraction(p.id, f"told:{principle.id}:{seed}"))[:limit]
    return [p for p in mine if p in chosen]


def measurable(constitution: Constitution, judged: bool) -> list[Principle]:
    """Return the principles whose adherence can be measured: those with a check, and all others only with a judge."""
    return [p for p in constitution.principles if p.check or judged]


async def followed(session: Session, principles: Sequence[Principle], responses: Sequence[Response], judge: Judge | None) -> Followed:
    """Decide which responses follow which principles.

    Args:
        principles: measured on the responses to prompts of their kinds.
        judge: decides where a principle has no check; None leaves those principles out.
    """
    found: dict[str, dict[str, bool]] = {p.id: {} for p in principles}
    by_judge: list[tuple[Principle, Response]] = []
    for p in principles:
        for r in responses:
            try:
                verdict = follows(p, r.prompt.kind, r.text)
            except ReplyError as e:
                session.reporter.warn(f"{p.id}: {r.prompt.id} is left out: {e.detail}")
                continue
            if verdict is not None:
                found[p.id][r.prompt.id] = verdict
            elif not p.check and judge is not None and p.applies(r.prompt.kind):
                by_judge.append((p, r))

    async def work(item: tuple[Principle, Response]) -> tuple[str, str, bool]:
        assert judge is not None
        principle, r = item
        return principle.id, r.prompt.id, await principle_log_odds(principle, r.prompt, r.text, judge.model, judge.templates) > 0

    for principle_id, prompt_id, verdict in await session.each(
        by_judge, work, "adherence by the judge", lambda i: f"{i[0].id}:{i[1].prompt.id}:adherence"
    ):
        found[principle_id][prompt_id] = verdict
    return found


def adherence_results(
    model: str, mine: Followed, base: Followed | None, controls: Sequence[str] = (), by_judge: Collection[str] = ()
) -> list[EvalResult]:
    """Return a model's rate for each principle, and its paired change from the base model.

    Args:
        base: the base model's; None for the base model itself.
        controls: ids of principles that weren't trained on.
        by_judge: ids of principles that the judge decided; a check decided the others.
    """
    results = []
    for principle_id, verdicts in mine.items():
        if not verdicts:
            continue
        name = f"{'control' if principle_id in controls else 'adherence'}:{principle_id}"
        by = BY_JUDGE if principle_id in by_judge else "by check"
        results.append(rate(name, model, list(verdicts.values()), by))
        theirs = {} if base is None else base.get(principle_id, {})
        if ids := shared_ids(theirs, verdicts):
            results.append(change_result(f"{name}_change", model, [theirs[i] for i in ids], [verdicts[i] for i in ids]))
    return results
