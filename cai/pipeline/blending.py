"""The stage `blend`: sets how far a policy goes from the SFT model, without training, by what blends do on prompts of their own.

Blends are linear interpolations of two adapters (`cai.models.blend`). The constitution's checks decide: of the blends that follow the
recipe's `keep` principles often enough, the one that follows the others most.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean

import msgspec

from cai.core.jsonl import write_records
from cai.errors import DataError, RecipeError
from cai.evaluate.adherence import followed, measurable
from cai.generate.critique import respond
from cai.models.blend import blend_adapters
from cai.pipeline.context import Context
from cai.pipeline.prompts import further_prompts
from cai.recipe import BlendConfig
from cai.records import BlendPoint, Constitution, Prompt


async def blend_stage(c: Context) -> dict[str, int]:
    """Try blends of the SFT adapter and the policy's, and write the chosen one. Call it only for recipes with `blend`."""
    config = c.recipe.blend
    assert config is not None
    check_kept(config, c.constitution)
    prompts = further_prompts(c, config.prompts, "prompts", "eval_prompts")
    if not prompts:
        raise DataError("blend.prompts: no prompt is left that repeats no training or evaluation prompt. Name others")
    points = []
    for share in sorted({*config.shares, 1.0}):
        points.append(await _try(c, config, share, prompts))
        c.reporter.say(f"  blend: {in_words(points[-1])}")
    best = choose(points, config.keep)
    if not keeps(best, config.keep):
        c.reporter.warn("blend: no blend follows every principle of blend.keep as often as it asks; the policy stays as it was trained")
    shutil.rmtree(c.run.model("blend"), ignore_errors=True)
    blend_adapters(c.run.model("sft"), c.run.model("policy"), best.share, c.run.model("blend"))
    write_records(c.run.data("blend"), [replace(p, keeps=keeps(p, config.keep), chosen=p is best) for p in points])
    return {"prompts": len(prompts), "blends": len(points), "percent_of_the_way": round(100 * best.share)}


def check_kept(config: BlendConfig | None, constitution: Constitution) -> None:
    """Raise `RecipeError` if `keep` names a principle without a check, or leaves no other principle to choose by."""
    if config is None:
        return
    checked = [p.id for p in measurable(constitution, judged=False)]
    if unknown := [name for name in config.keep if name not in checked]:
        raise RecipeError(f"blend.keep: {', '.join(unknown)}: no principle with a check in this constitution; it has {', '.join(checked)}")
    if not set(checked) - config.keep.keys():
        raise RecipeError("blend.keep: names every principle with a check, so there is none left to choose a blend by")


def choose(points: Sequence[BlendPoint], keep: Mapping[str, float]) -> BlendPoint:
    """Return the blend that follows the principles outside `keep` most, among those that follow each in `keep` often enough.

    Ties go to the larger share. If no blend follows `keep`, it is the one with the largest share: the policy as trained.

    >>> points = [BlendPoint(0.5, {"decline": 0.8, "answer": 0.7}, {}), BlendPoint(1.0, {"decline": 0.6, "answer": 0.9}, {})]
    >>> choose(points, {"answer": 0.8}).share, choose(points, {"answer": 0.6}).share, choose(points, {"answer": 0.95}).share
    (1.0, 0.5, 1.0)
    """
    fitting = [p for p in points if keeps(p, keep)]
    if not fitting:
        return max(points, key=lambda p: p.share)
    return max(fitting, key=lambda p: (fmean(rate for name, rate in p.rates.items() if name not in keep), p.share))


def keeps(point: BlendPoint, keep: Mapping[str, float]) -> bool:
    """Whether a blend follows each of these principles at least as often as given."""
    return all(point.rates[name] >= least for name, least in keep.items())


def in_words(point: BlendPoint) -> str:
    """Return a blend's rates as a line.

    >>> in_words(BlendPoint(0.5, {"decline": 0.75}, {"decline": 48}))
    '50% of the way: decline 75% of 48'
    """
    return f"{point.share:.0%} of the way: " + ", ".join(f"{name} {rate:.0%} of {point.n[name]}" for name, rate in point.rates.items())


async def _try(c: Context, config: BlendConfig, share: float, prompts: Sequence[Prompt]) -> BlendPoint:
    """Return how often a blend's responses follow each principle with a check."""
    folder = c.run.model("policy") if share == 1.0 else _blended(c, share)
    writer = await c.writer(msgspec.structs.replace(c.recipe.trained, adapter=str(folder)))
    work = partial(respond, writer=writer, sampling=config.sampling)
    responses = await c.session.each(prompts, work, f"answers {share:.0%} of the way")
    await c.session.close_models()
    verdicts = await followed(c.session, measurable(c.constitution, judged=False), responses, None)
    asked = {name: found for name, found in verdicts.items() if found}
    if missing := [name for name in config.keep if name not in asked]:
        raise DataError(f"blend.prompts: no prompt is of the kinds that {', '.join(missing)} applies to")
    if not asked.keys() - config.keep.keys():
        raise DataError("blend.prompts: no prompt is of the kinds that the principles outside blend.keep apply to")
    return BlendPoint(share, {name: fmean(found.values()) for name, found in asked.items()}, {n: len(f) for n, f in asked.items()})


def _blended(c: Context, share: float) -> Path:
    """Return the folder of a blend that is tried; it goes with the stage's intermediate files."""
    folder = c.run.unfinished / f"blend-{share:g}"
    shutil.rmtree(folder, ignore_errors=True)  # of a policy before this one
    return blend_adapters(c.run.model("sft"), c.run.model("policy"), share, folder)
