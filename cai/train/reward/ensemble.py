"""Scoring with a reward model ensemble: one base model in memory, and a LoRA adapter with a scalar head per member.

A single reward model is an ensemble of one. A member is a folder that `cai.train.reward.train` has written, in PEFT's format.

A Bradley–Terry score is only defined up to a constant, which differs between members. The minimum over members and their standard
deviation would reflect these constants, and the centring term of the loss (arXiv 2312.09244, §2) only pulls them towards 0. So each
member's scores are centred: its mean score over the responses of some training pairs, the same pairs for all members, is subtracted.

Aggregation follows Coste et al. 2023 (arXiv 2310.02743), §4. Departure from the paper: `uncertainty` subtracts standard deviations,
which have the unit of the scores, not variances.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, pstdev
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec.structs import replace

from cai.core.jsonl import write_text
from cai.data.splits import conversation_id
from cai.errors import ModelError
from cai.ids import split_fraction
from cai.models.local.fingerprint import model_fingerprint
from cai.models.local.precision import resolved_precision, tokens_at_once
from cai.recipe import Aggregate, ModelSpec, RewardConfig
from cai.records import Message, Preference, RewardScore, ScoredPair
from cai.train.encode import encode_turn, encoder_of
from cai.train.running import quiet_training

if TYPE_CHECKING:
    from torch import Tensor

CENTRE = "centre.json"
"""File in a member's folder with its mean score, which is subtracted from its scores."""
CENTRE_PAIRS = 64
"""Pairs for the mean score. The standard error of the mean of 128 responses is a tenth of the scores' standard deviation."""
KEPT_TOKENS = 16_384
"""Tokens per batch of texts that share prefixes, padding included. Keys and values of the prefixes stay in memory for a batch."""
NO_LIMIT = 10**9
_DEFAULTS = RewardConfig()


class Centre(msgspec.Struct, frozen=True):
    """A member's mean score over `n` responses, which is subtracted from its scores."""

    mean: float
    n: int


def choose_centre_pairs(preferences: Sequence[Preference]) -> list[Preference]:
    """Return up to `CENTRE_PAIRS` pairs, chosen by hash, on which the members' scores are centred."""
    return sorted(preferences, key=lambda p: split_fraction(p.id, CENTRE))[:CENTRE_PAIRS]


@dataclass(frozen=True, slots=True)
class EnsembleMember:
    """One reward model of an ensemble."""

    name: str
    adapter: str | None
    """Name of its adapter on the shared model; None if it is merged into the model."""
    max_length: int
    """Longest conversation in tokens; longer ones are truncated on the left."""
    centre: float
    """Mean score that is subtracted from its scores."""


@dataclass
class RewardEnsemble:
    """Scores responses. Higher is better. Only differences between responses to the same prompt are meaningful."""

    model: Any
    """The base model with all members' adapters and heads."""
    tokenizer: Any
    members: tuple[EnsembleMember, ...]
    aggregate: Aggregate = _DEFAULTS.aggregate
    penalty: float = _DEFAULTS.uncertainty_penalty

    def score(self, items: Sequence[tuple[Sequence[Message], str]]) -> list[RewardScore]:
        """Return the scores of responses to conversations, in order. Shared prefixes are run once.

        Args:
            items: the conversation up to the response, and the response.
        """
        turns = [encode_turn(self.tokenizer, messages, response) for messages, response in items]
        by_member = [self._score_all([(prompt + response)[-m.max_length :] for prompt, response in turns], m) for m in self.members]
        return [aggregate_scores(scores, self.aggregate, self.penalty) for scores in zip(*by_member, strict=True)]

    def _score_all(self, ids: list[list[int]], member: EnsembleMember) -> list[float]:
        """Return one member's scores."""
        if member.adapter is not None:
            self.model.set_adapter(member.adapter)
        model = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        # the model's own forward, used in training, ignores padding tokens at the end
        shared = shares_prefixes(model) and all(text[-1] != self.tokenizer.pad_token_id for text in ids)
        score = score_shared if shared else score_padded
        scores = [0.0] * len(ids)
        for batch in _batches(ids, KEPT_TOKENS if shared else tokens_at_once(model.device.type), shared):
            for i, raw in zip(batch, score(model, [ids[i] for i in batch]), strict=True):
                scores[i] = raw - member.centre
        return scores


def shares_prefixes(model: Any) -> bool:
    """Whether a reward model can continue from a KV cache: plain or sliding-window attention, and a head on the last token."""
    from transformers.modeling_layers import GenericForSequenceClassification

    from cai.models.local.kv_cache import attention_windows

    try:
        attention_windows(model.config.get_text_config(decoder=True))
    except ModelError:
        return False
    return isinstance(model, GenericForSequenceClassification)


def _batches(ids: list[list[int]], budget: int, shared: bool) -> Iterator[list[int]]:
    """Yield batches of text indices of up to `budget` tokens, padding included. Texts are sorted by prefix if `shared`, else by length."""
    batch: list[int] = []
    longest = 0
    for i in sorted(range(len(ids)), key=lambda i: ids[i] if shared else [-len(ids[i])]):
        longest = max(longest, len(ids[i]))
        if batch and (len(batch) + 1) * longest > budget:
            yield batch
            batch, longest = [], len(ids[i])
        batch.append(i)
    if batch:
        yield batch


def score_shared(model: Any, ids: list[list[int]]) -> list[float]:
    """Return the scores of texts under a model that `shares_prefixes`, running shared prefixes once.

    Args:
        model: a reward model, with one score per text.
        ids: the tokens of each text.
    """
    import torch

    from cai.models.local.prefix import run_prompts

    with torch.inference_mode():
        logits_B11, _ = run_prompts(_Scorer(model), ids)
    return [float(x) for x in logits_B11[:, -1, 0].float()]


class _Scorer:
    """Adapts a reward model to `run_prompts`: its logits are the scores at the last positions."""

    def __init__(self, model: Any) -> None:
        self.base_model, self.head = model.base_model, model.score
        self.config, self.device, self.dtype = model.config, model.device, model.dtype

    def __call__(self, logits_to_keep: int, **inputs: Any) -> Any:
        from transformers.modeling_outputs import SequenceClassifierOutputWithPast

        hidden_BTD = self.base_model(**inputs).last_hidden_state
        return SequenceClassifierOutputWithPast(logits=self.head(hidden_BTD[:, -logits_to_keep:]))


def score_padded(model: Any, ids: list[list[int]]) -> list[float]:
    """Return the scores of texts under any reward model, padded on the right. Arguments as for `score_shared`."""
    import torch

    from cai.models.local.prefix import padded

    tokens_BT, real_BT = padded(ids, "right", model)
    tokens_BT = tokens_BT.masked_fill(~real_BT, model.config.get_text_config().pad_token_id)
    with torch.inference_mode():
        logits_B1 = model(input_ids=tokens_BT, attention_mask=real_BT.long(), use_cache=False).logits
    return [float(x) for x in logits_B1.squeeze(-1).float()]


def score_pairs(ensemble: RewardEnsemble, preferences: Sequence[Preference], held_out: bool) -> list[ScoredPair]:
    """Return preferences with the scores of both sides, in order.

    Args:
        held_out: whether no member was trained on the prompts of these pairs.
    """
    scores = ensemble.score([(p.prompt.messages, text) for p in preferences for text in (p.chosen, p.rejected)])
    return [
        ScoredPair(
            p.id,
            p.prompt.id,
            p.prompt.kind,
            p.source,
            p.p_chosen,
            held_out,
            len(p.chosen),
            len(p.rejected),
            chosen,
            rejected,
            conversation_id(p.prompt),
        )
        for p, chosen, rejected in zip(preferences, scores[::2], scores[1::2], strict=True)
    ]


def aggregate_scores(
    members: Sequence[float], aggregate: Aggregate = _DEFAULTS.aggregate, penalty: float = _DEFAULTS.uncertainty_penalty
) -> RewardScore:
    """Aggregate the members' scores of one response.

    Args:
        members: centred scores, at least one.
        aggregate: `mean`, `min` or `uncertainty` (mean − penalty × std).
        penalty: at least 0.

    >>> aggregate_scores([1.0, 3.0], "uncertainty", penalty=0.5)
    RewardScore(value=1.5, std=1.0, members=(1.0, 3.0))
    >>> aggregate_scores([1.0, 3.0], "min").value
    1.0
    """
    mean, std = fmean(members), pstdev(members)
    value = {"mean": mean, "min": min(members), "uncertainty": mean - penalty * std}[aggregate]
    return RewardScore(value, std, tuple(members))


def load_ensemble(
    folders: Sequence[Path],
    base: ModelSpec | None = None,
    aggregate: Aggregate = _DEFAULTS.aggregate,
    penalty: float = _DEFAULTS.uncertainty_penalty,
) -> RewardEnsemble:
    """Load reward models onto one base model.

    A single member is merged into the base model, which is faster. Several members stay separate adapters, to need only one base model.

    Args:
        folders: folders that `train_reward` has written, one per member; at least one.
        base: how to load the base model; None takes the path that the adapters name, with a recipe's defaults.
        aggregate: how the members' scores are aggregated.
        penalty: factor of the standard deviation in `uncertainty`, at least 0.

    Raises:
        ModelError: a folder holds no adapter, members are for different models, or the base can't be loaded.
    """
    import torch
    from peft import PeftModel
    from transformers import AutoTokenizer

    from cai.models.local.adapter import adapter_base, refuse_foreign_weights, whole_adapter
    from cai.models.local.loading import explained_load
    from cai.models.local.quiet import quiet_transformers

    bases = {str(folder): adapter_base(folder) for folder in folders}
    if base is None and len(set(bases.values())) != 1:
        raise ModelError(
            "all members of an ensemble must have the same base model; found "
            + (", ".join(f"{folder}: {path}" for folder, path in bases.items()) or "no member")
        )
    spec = ModelSpec(path=next(iter(bases.values()))) if base is None else replace(base, adapter=None)
    precision = resolved_precision(spec.precision)
    merge = len(folders) == 1 and precision != "nf4"
    members = []
    with quiet_training(), quiet_transformers():
        with explained_load(str(folders[0])):
            tokenizer = AutoTokenizer.from_pretrained(folders[0], trust_remote_code=spec.trust_remote_code)
        model = load_scorer(replace(spec, precision="float32") if merge else spec, tokenizer.pad_token_id)
        for i, folder in enumerate(folders):
            name = f"{folder.name}-{i}"
            with explained_load(str(folder)), whole_adapter(str(folder), spec.path):
                max_length = AutoTokenizer.from_pretrained(folder, trust_remote_code=spec.trust_remote_code).model_max_length
                if i == 0:
                    model = PeftModel.from_pretrained(model, str(folder), adapter_name=name, use_safetensors=True)
                else:
                    model.load_adapter(str(folder), adapter_name=name, use_safetensors=True)
                refuse_foreign_weights(model, str(folder), spec.path)
                members.append(EnsembleMember(folder.name, None if merge else name, max_length, read_centre(folder)))
        if merge:
            model = model.merge_and_unload()
            model = model.to(torch.float32 if precision == "float32" else torch.bfloat16)
    for head in [model.score] if merge else model.base_model.model.score.modules_to_save.values():
        head.float().register_forward_pre_hook(_as_float)  # bfloat16's 8 bits of precision are too few for a score
    tokenizer.model_max_length = NO_LIMIT  # texts are truncated here, without the tokenizer's warnings
    return RewardEnsemble(model.eval(), tokenizer, tuple(members), aggregate, penalty)


def _as_float(module: Any, inputs: "tuple[Tensor, ...]") -> "tuple[Tensor, ...]":
    return tuple(x.float() for x in inputs)


def read_centre(folder: Path) -> float:
    """Return a member's stored mean score; 0 if its folder has none."""
    path = folder / CENTRE
    return msgspec.json.decode(path.read_bytes(), type=Centre).mean if path.exists() else 0.0


def scorer_fingerprints(folders: Sequence[Path], base: ModelSpec) -> list[tuple[str, float]]:
    """Return what determines the scores of reward models: each one's fingerprint and mean score. Logs and times in a folder don't."""
    return [(model_fingerprint(replace(base, adapter=str(folder))), read_centre(folder)) for folder in folders]


def write_centre(folder: Path, scores: Sequence[float]) -> None:
    """Write a member's mean score. `scores`: uncentred scores of responses, at least one."""
    write_text(folder / CENTRE, msgspec.json.encode(Centre(sum(scores) / len(scores), len(scores))).decode() + "\n")


def scoring_tokenizer(tokenizer: Any) -> Any:
    """Set the tokenizer up for scoring, and return it.

    The head reads the last token that isn't padding, so the padding token must not end a turn, as it often does.
    """
    ends = (tokenizer.eos_token_id, encoder_of(tokenizer).end_id)
    if tokenizer.pad_token_id in ends:
        others = (tokenizer.unk_token, tokenizer.bos_token)
        usable = (t for t in others if t is not None and tokenizer.convert_tokens_to_ids(t) not in ends)
        tokenizer.pad_token = next(usable, tokenizer.eos_token)
    tokenizer.truncation_side = "left"
    tokenizer.padding_side = "right"
    return tokenizer


def load_scorer(spec: ModelSpec, pad_token_id: int) -> Any:
    """Return the base model with a new scalar head instead of the language-model head. Raises `ModelError`."""
    import torch
    from transformers import AutoModelForSequenceClassification

    from cai.models.local.folders import resolve_model_path
    from cai.models.local.loading import nf4_options
    from cai.models.local.quiet import quiet_transformers

    device, precision = "cuda" if torch.cuda.is_available() else "cpu", resolved_precision(spec.precision)
    dtype = torch.float32 if precision == "float32" else torch.bfloat16
    options: dict[str, Any] = {"dtype": dtype, "use_safetensors": True, "attn_implementation": "sdpa", "num_labels": 1}
    if precision == "nf4":
        options |= nf4_options(device, skip=["score"])
    with quiet_transformers():
        model = AutoModelForSequenceClassification.from_pretrained(
            resolve_model_path(spec), trust_remote_code=spec.trust_remote_code, **options
        )
    model.config.get_text_config().pad_token_id = pad_token_id
    return model if precision == "nf4" else model.to(device)
