"""Prompts, and the texts that a run makes from them: responses, revisions, distilled responses and pairs."""

from typing import Annotated, Literal

from msgspec import Meta

from cai.core.plugins import PROMPT_FORMAT
from cai.recipe.base import Fraction, Positive, SamplingSpec, Section, SteadySampling
from cai.records import PromptKind

PromptFormatName = Annotated[str, Meta(extra_json_schema={"x-names-of": PROMPT_FORMAT.group})]
Placement = Literal["system", "user", "turns"]


class PromptSource(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file or Hub dataset of prompts."""

    path: str
    """JSONL, CSV or text file (relative to the workspace), a glob, or `hub:OWNER/NAME`."""
    format: PromptFormatName = "auto"
    """Format of the rows. `auto` detects it row by row. `cai`: `id`, `kind` and `messages`. `hh`: preferences, by their `chosen`. `jsonl`,
    `csv`, `text` (a prompt a line) and `hub` say what the file is. Installed packages can add others."""
    kind: PromptKind | None = None
    """Kind of the prompts whose row names none: `harmful`, `borderline`, `helpful` or `other`."""
    limit: Positive | None = None
    """Maximum number of prompts. They are chosen by a hash of the run's seed and the prompt's id, so raising the limit only adds prompts.
    None keeps all."""
    split: str = "train"
    """Split of a Hub dataset."""
    field: str = "prompt"
    """Column or key that holds the prompt's text."""


class Prompts(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Training and evaluation prompts."""

    train: tuple[PromptSource, ...] = (PromptSource(path="prompts/harmful.jsonl"), PromptSource(path="prompts/helpful.jsonl"))
    """Prompts to train on."""
    evaluate: tuple[PromptSource, ...] = (
        PromptSource(path="prompts/eval_harmful.jsonl"),
        PromptSource(path="prompts/eval_borderline.jsonl"),
        PromptSource(path="prompts/eval_helpful.jsonl"),
    )
    """Held-out prompts for evaluation."""
    near_duplicates: Annotated[float, Meta(gt=0, le=1)] | None = 0.8
    """Jaccard similarity of five-word n-grams, without case and punctuation, from which a training prompt counts as a near-duplicate of an
    evaluation prompt or an earlier training prompt, and is dropped; preferences of near-duplicates stay on one side of a split. None: exact
    duplicates only. The search takes about 0.1 ms per short prompt, and longer if many prompts share wording without being duplicates: set
    None for a million prompts made from one template."""


class Respond(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Initial responses, before critique and revision."""

    kinds: tuple[PromptKind, ...] = ("harmful", "borderline", "helpful", "other")
    """Kinds of prompts that get an initial response, to be critiqued, kept as SFT data, or paired with a distilled one. Distillation alone
    needs none."""
    limit: Positive | None = None
    """Maximum number of these prompts, chosen by hash. None: all."""
    sampling: SamplingSpec = SamplingSpec()
    """Sampling of the initial responses."""


class CritiqueConfig(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Critique and revision (Bai et al. 2022, §3)."""

    rounds: Positive = 1
    """Number of critique–revision rounds per response, each under another principle."""
    sampling: SteadySampling = SteadySampling()
    """Sampling of critiques and revisions."""
    train_on: Literal["final", "every"] = "every"
    """Revisions that become SFT data: those of every round, or the final one. The paper trains on "the revisions (from all revisional
    steps)" (§3.1)."""
    kinds: tuple[PromptKind, ...] = ("harmful", "borderline", "other")
    """Kinds of prompts whose responses are critiqued. For other kinds, the initial response becomes SFT data unchanged. The paper revises
    responses to red-team prompts only, and mixes in sampled responses to helpful prompts, to retain helpfulness (§3.1)."""
    min_p_revised: Fraction = 0.5
    """Minimum judge probability that the revision is better than the initial response. Revisions below it are dropped. 0 skips the judge
    and keeps all."""
    min_share: Fraction = 0.0
    """Minimum share of the applicable checks that the final text must follow, by the principles' weights. Traces below it are dropped."""
    drop_refusals: bool = True
    """Whether to drop revisions that refuse the revision request, or that refuse a prompt that isn't harmful."""


class DistillConfig(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Context distillation (arXiv 2112.00861): responses under principles in context, to be imitated without them."""

    samples: Positive = 4
    """Number of responses sampled per prompt, of which the best is kept (rejection sampling)."""
    sampling: SamplingSpec = SamplingSpec()
    """Sampling of the responses."""
    placement: Placement = "user"
    """Where the principles stand. `system`: in the system turn. `user`: in the user's turn, after the question. `turns`: one after the
    other; the model answers, and is then told each principle whose check asks for something that the answer lacks, and what it says is
    added to the answer. Small models hardly follow the system turn, and best follow one principle at a time."""
    per_prompt: Positive | None = None
    """Number of principles in context, drawn by hash of the prompt. None: all that apply to the prompt's kind."""
    kinds: tuple[PromptKind, ...] = ("harmful", "borderline", "helpful", "other")
    """Kinds of prompts that are answered."""
    min_share: Fraction = 1.0
    """Minimum share of the applicable checks that a response must follow. Responses below it are left out."""
    drop_refusals: bool = True
    """Whether to leave out refusals of prompts that aren't harmful."""


class PairsConfig(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Response pairs sampled from the SFT policy."""

    per_prompt: Positive = 1
    """Number of pairs sampled per prompt."""
    limit: Positive | None = None
    """Maximum number of prompts, chosen by hash. None: all."""
    sampling: SamplingSpec = SamplingSpec()
    """Sampling of both responses."""
    contrast: bool = False
    """Whether to also make RLCD pairs (arXiv 2307.12950): one response is requested under the principle, one against it, so the label is
    known by construction."""
    contrast_p: Annotated[float, Meta(ge=0.5, le=1)] = 0.9
    """Label of a contrast pair: the probability that the response under the principle is better."""
