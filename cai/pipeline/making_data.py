"""The stages that make a run's data: responses, revisions, pairs of responses, their labels, and preferences.

Numbers in brackets are sections of Bai et al. 2022 (arXiv 2212.08073).
"""

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Container, Iterable, Iterator
from dataclasses import replace
from functools import partial
from heapq import nsmallest
from operator import attrgetter
from typing import TypeVar

from msgspec import UNSET

from cai.core.flow import Failed, run_items
from cai.core.jsonl import count_records, record_writer, write_records
from cai.core.manifest import FOLLOWED, TEXTS, TOLD, TRUNCATED
from cai.data.balance import opposite_leanings, source_balance
from cai.data.mixture import mix
from cai.data.repeats import Seen
from cai.generate.critique import Writer, critique_and_revise, respond, sft_examples
from cai.generate.distill import Distilled, begin, distill
from cai.generate.pairs import PairTask, contrast_pair, pair_tasks, sample_pair
from cai.ids import split_fraction
from cai.judge.card import measure_judge
from cai.judge.choices import mass_warning
from cai.judge.fitted import fitted_of
from cai.labels.load import load_human
from cai.pipeline.context import Context
from cai.pipeline.prompts import further_prompts, write_prompts
from cai.recipe import GOLD, BeginningsConfig, Recipe, SFTData
from cai.records import PROMPT_KINDS, Judgment, Prompt, Response, ResponsePair, RevisionTrace, SFTExample
from cai.stats import RunningMean

PAIRS_OF: dict[SFTData, str] = {"critique": "revision_pairs", "distill": "distilled_pairs"}
"""Source of SFT data to the file of the pairs that its stage makes beside it."""
T = TypeVar("T")
R = TypeVar("R")


async def respond_stage(c: Context) -> dict[str, int]:
    """Load the prompts, and sample an initial response to each [§3.1]."""
    counts = write_prompts(c)
    work = partial(respond, writer=await c.writer(), sampling=c.recipe.respond.sampling)
    responses = cut = 0
    with record_writer(c.run.data("responses")) as write:
        chosen = _chosen(c, c.recipe.respond.limit, c.recipe.respond.kinds)
        prompts = (p for p in c.read("prompts", Prompt) if p.kind in c.recipe.respond.kinds and (chosen is None or p.id in chosen))
        total = sum(p.kind in c.recipe.respond.kinds for p in c.read("prompts", Prompt)) if chosen is None else len(chosen)
        async for response in each(c, prompts, work, Response, total=total):
            write(response)
            responses += 1
            cut += response.truncated
    return {**counts, "responses": responses, TRUNCATED: cut}


async def critique_stage(c: Context) -> dict[str, int]:
    """Critique and revise each response under principles from the constitution [§3.1]; keep revisions that pass the rules."""
    config = c.recipe.critique
    writer, judge = await c.writer(), await c.judge()
    ask = judge if config.min_p_revised > 0 else None
    work = partial(critique_and_revise, constitution=c.constitution, writer=writer, config=config, judge=ask)
    counts: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    with (
        record_writer(c.run.data("traces")) as write_trace,
        record_writer(c.run.data("sft")) as write_example,
        record_writer(c.run.data("revision_pairs")) as write_pair,
    ):
        responses, total = c.read("responses", Response), count_records(c.run.data("responses"))
        async for trace in each(c, responses, work, RevisionTrace, total=total, item_id=lambda r: r.prompt.id):
            write_trace(trace)
            counts["traces"] += 1
            counts[TEXTS] += len(trace.rounds)
            counts[TRUNCATED] += sum(r.revision.truncated for r in trace.rounds)
            for example in sft_examples(trace, config):
                write_example(_imitated(c, example))
                counts["sft_examples"] += 1
            if trace.rounds and trace.dropped in (None, "worse_by_judge", "worse_by_check"):
                write_pair(trace.pair)
                counts["revision_pairs"] += 1
            if trace.dropped:
                dropped[f"{'unrevised' if trace.stands else 'dropped'}_{trace.dropped}"] += 1
    return {name: counts[name] for name in ("traces", "sft_examples", "revision_pairs", TEXTS, TRUNCATED)} | dict(sorted(dropped.items()))


async def distill_stage(c: Context) -> dict[str, int]:
    """Answer each prompt with the principles of its kind in context, and keep the best responses (arXiv 2112.00861)."""
    config = c.recipe.distill
    writer = await c.writer()
    begun = {} if c.recipe.sft.beginnings is UNSET else {"beginnings": await _write_beginnings(c, c.recipe.sft.beginnings, writer)}

    async def work(item: tuple[Prompt, Response | None]) -> Distilled:
        return await distill(*item, c.constitution, writer, config)

    counts: Counter[str] = Counter(prompts=0, kept=0, pairs=0)
    total = sum(p.kind in config.kinds for p in c.read("prompts", Prompt))
    prompts = (item for item in _with_responses(c) if item[0].kind in config.kinds)
    with record_writer(c.run.data("distilled")) as write_example, record_writer(c.run.data("distilled_pairs")) as write_pair:
        async for found in each(c, prompts, work, Distilled, total=total, item_id=lambda item: item[0].id):
            counts["prompts"] += 1
            counts[TEXTS] += config.samples
            counts[TRUNCATED] += found.dropped.count("truncated")
            counts.update(f"samples_{rule}" for rule in found.dropped)
            counts.update(TOLD + principle for principle, _ in found.followed)
            counts.update(FOLLOWED + principle for principle, yes in found.followed if yes)
            if found.example is not None:
                write_example(_imitated(c, found.example))
                counts["kept"] += 1
            if found.pair is not None:
                write_pair(found.pair)
                counts["pairs"] += 1
    return dict(counts) | begun


async def _write_beginnings(c: Context, config: BeginningsConfig, writer: Writer) -> int:
    """Write the examples of beginnings, and return their number. Evaluation prompts among theirs are left out, and counted as failures."""
    prompts = [p for p in further_prompts(c, config.prompts, "eval_prompts") if p.kind in c.recipe.distill.kinds]
    work = partial(begin, constitution=c.constitution, writer=writer, config=c.recipe.distill)
    count = 0
    with record_writer(c.run.data("beginnings")) as write:
        async for example in each(c, prompts, work, SFTExample, total=len(prompts), name="beginnings"):
            write(example)
            count += 1
    return count


def _imitated(c: Context, example: SFTExample) -> SFTExample:
    """Return an example with what its model thought only if the recipe asks for it; traces and responses have it always."""
    return example if c.recipe.sft.thinking else replace(example, reasoning="")


def _with_responses(c: Context) -> Iterator[tuple[Prompt, Response | None]]:
    """Yield each prompt with its initial response, if it has one. Responses are in the order of the prompts."""
    responses = iter(c.read("responses", Response))
    response = next(responses, None)
    for prompt in c.read("prompts", Prompt):
        if response is not None and response.prompt.id == prompt.id:
            yield prompt, response
            response = next(responses, None)
        else:
            yield prompt, None


async def pairs_stage(c: Context) -> dict[str, int]:
    """Sample pairs of responses from the SFT policy [§4.1], and contrast pairs if the recipe asks for them (arXiv 2307.12950)."""
    config = c.recipe.pairs
    chosen = _chosen(c, config.limit)
    total = config.per_prompt * (count_records(c.run.data("prompts")) if chosen is None else len(chosen))
    makers: dict[str, Callable[[PairTask], Awaitable[ResponsePair]]]
    makers = {"sampled": partial(sample_pair, writer=await c.writer(c.adapted("sft")), config=config)}
    if config.contrast:
        makers["contrast"] = partial(contrast_pair, constitution=c.constitution, writer=await c.writer(), config=config)
    counts: Counter[str] = Counter()
    with record_writer(c.run.data("pairs")) as write:
        for kind, make in makers.items():
            drawn = (p for p in c.read("prompts", Prompt) if chosen is None or p.id in chosen)
            tasks = pair_tasks(drawn, config.per_prompt)
            async for pair in each(c, tasks, make, ResponsePair, total=total, name=kind):
                write(pair)
                counts[kind] += 1
                counts[TEXTS] += 2
                counts[TRUNCATED] += pair.truncated_a + pair.truncated_b
    return {name: counts[name] for name in ("sampled", "contrast", TEXTS, TRUNCATED)}


def _chosen(c: Context, limit: int | None, kinds: Container[str] = PROMPT_KINDS) -> set[str] | None:
    """Return the ids of at most `limit` prompts of some kinds, chosen by a hash, so that raising the limit only adds some; None: all."""
    by_hash: Callable[[str], float] = lambda i: split_fraction(i, f"{c.stage}:{c.recipe.seed}")  # noqa: E731
    ids = (p.id for p in c.read("prompts", Prompt) if p.kind in kinds)
    return None if limit is None else set(nsmallest(limit, ids, key=by_hash))


async def feedback_stage(c: Context) -> dict[str, int]:
    """Measure the judge against human labels, then judge all pairs that aren't labelled by construction [§4.1]."""
    judge = await c.judge()
    c.manifest.judge = await measure_judge(c.recipe, c.root, judge, c.run.data("judge_bench"), c.reporter)
    if not c.manifest.judge.beats_baselines:
        c.reporter.say(c.manifest.judge.note, "yellow")  # shown again at the end of the run
    total = sum(1 for _ in _unlabelled(c))
    judged, masses = 0, RunningMean()
    with record_writer(c.run.data("judgments")) as write:
        async for judgment in each(c, _unlabelled(c), judge, Judgment, total=total, failure_of=lambda j: j.failed):
            write(judgment)
            masses.add(judgment.mass)
            judged += 1
    c.manifest.judge.mass = masses.mean
    c.manifest.judge.mass_warning = mass_warning(masses.mean, c.recipe.feedback.protocol)
    if c.manifest.judge.mass_warning:
        c.reporter.warn(c.manifest.judge.mass_warning)
    return {"judged": judged, "failed": len(c.failures)}


def _unlabelled(c: Context) -> Iterator[ResponsePair]:
    """Yield each pair that isn't labelled by construction, once."""
    seen = Seen()
    for name in pair_files(c.recipe):
        for pair in c.read(name, ResponsePair):
            if pair.p_a is None and seen.add(pair.id):
                yield pair


def preferences_stage(c: Context) -> dict[str, int]:
    """Mix AI, revision, contrast and human labels into preferences, split by prompt to avoid leakage."""
    config = c.recipe.preferences
    human, failures = load_human(config.human, c.root, c.recipe.seed, c.reporter.say)
    pairs = [p for name in pair_files(c.recipe) for p in c.read(name, ResponsePair)]
    gold = c.recipe.gold
    gold_human, gold_failures = load_human(gold.human if gold else (), c.root, c.recipe.seed, c.reporter.say)
    fitted = fitted_of(c.recipe.feedback, c.root)
    mixture = mix(
        config,
        pairs,
        c.read("judgments", Judgment),
        human,
        c.recipe.seed,
        evaluate=c.read("eval_prompts", Prompt),
        gold=gold,
        gold_human=gold_human,
        fitted=[prompt for one in fitted for prompt in one.prompts],
        fitted_texts={key for one in fitted for key in one.fitted_on},
        similarity=c.recipe.prompts.near_duplicates,
        warn=c.reporter.warn,
    )
    c.failures += [*failures, *gold_failures, *mixture.dropped]
    write_records(c.run.data("preferences"), mixture.train)
    write_records(c.run.data("preferences_heldout"), mixture.held_out)
    balance = source_balance(mixture.train, mixture.held_out)
    write_records(c.run.data("balance"), balance)
    for warning in opposite_leanings(balance):
        c.reporter.warn(warning)
    if gold:
        write_records(c.run.data(GOLD), mixture.gold_train)
        write_records(c.run.data(f"{GOLD}_heldout"), mixture.gold_held_out)
    return {k: v for k, v in mixture.counts.items() if v}


def pair_files(recipe: Recipe) -> tuple[str, ...]:
    """Return the names of the files of pairs that a run of this recipe has."""
    return ("pairs", *(PAIRS_OF[name] for name in recipe.sft.data))


def each(
    c: Context,
    items: Iterable[T],
    work: Callable[[T], Awaitable[R]],
    result_type: type[R],
    *,
    total: int,
    name: str = "results",
    item_id: Callable[[T], str] = attrgetter("id"),
    failure_of: Callable[[R], Failed | None] = lambda result: None,
) -> AsyncIterator[R]:
    """Process items with the recipe's limits, and show progress. Items are streamed, with at most `window` in progress.

    Results are written to the journal called `name`, and results of an interrupted run are reused from it.
    """
    c.reporter.progress(0, total)
    journal = c.journal(name, result_type)
    return run_items(
        items,
        work,
        window=c.recipe.window,
        max_failure_fraction=c.recipe.max_failure_fraction,
        stage=c.stage,
        failures=c.failures,
        failure_of=failure_of,
        on_progress=lambda done: c.reporter.progress(done, total),
        known=journal.known(),
        on_result=journal.add,
        item_id=item_id,
    )
