"""The shared base of PPO: one base model in memory, with policy, reference, value function and reward models as adapters and heads.

1. `policy` starts as a copy of the SFT adapter, and is trained.
2. `reference` is the SFT adapter, frozen; without an SFT adapter it is the base model without adapters.
3. `value` is a separate adapter with a scalar head, and is trained. It starts as a copy of the first reward model, including its head
   (Ziegler et al. 2019, Stiennon et al. 2020), because it mostly predicts that model's score. Why not a head on the policy's hidden
   states: docs/decisions/0009.
4. `reward_0`, `reward_1`, … are reward models from `train_reward`: LoRA weights, whose names match the causal model's, and a `score` head.

Trained weights are float32. Frozen adapters have the precision of the forward pass, which would round them to it anyway.

Logits are computed in float32, only at the requested positions, and for a part of the vocabulary at a time (`TokenLogprobs`). In bfloat16
a logit near 20 has steps of 1/8, which is more than a policy changes in a step. Dropout is off: it would differ between sampling and
training, like a change of the policy.

Import this module inside functions only: it loads torch.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from msgspec.structs import replace
from torch import Tensor, nn

from cai.errors import ModelError, TrainingError
from cai.models.local.adapter import adapter_weights, with_adapter
from cai.models.local.loading import load_causal_lm
from cai.models.local.precision import resolved_precision
from cai.recipe import GOLD, LoraSpec, ModelSpec, Precision
from cai.train.arguments import with_new_adapter
from cai.train.reward.ensemble import read_centre

POLICY, REFERENCE, VALUE = "policy", "reference", "value"
VOCABULARY_PART = 8192
"""Rows of the output layer that are converted to float32 at one time."""
POSITIONS = 512
"""Positions whose logits are in memory at one time."""
SAME_LOGITS = 0.05
"""Largest difference between these logits and the model's own, relative to the largest logit. bfloat16 rounds by up to 0.004."""


@dataclass
class SharedBase:
    """The base model with its adapters, in evaluation mode except inside `training`."""

    model: Any
    """The PEFT model."""
    heads: dict[str, nn.Linear]
    """Scalar heads in float32, by adapter: the value function's and each reward model's. A reward head's bias subtracts the mean."""
    max_length: dict[str, int]
    """Longest conversation of each reward model, in tokens; longer ones are truncated on the left."""
    precision: str
    has_reference: bool
    """Whether the reference is an adapter; otherwise it is the base model."""

    @property
    def causal(self) -> Any:
        """The `transformers` model that contains the adapters."""
        return self.model.get_base_model()

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.causal.device  # type: ignore[no-any-return]

    @property
    def members(self) -> tuple[str, ...]:
        """Names of the reward models, without gold."""
        return tuple(name for name in self.max_length if name != GOLD)

    def trained(self) -> dict[str, nn.Parameter]:
        """Return the trained weights by name: the adapters of policy and value function, and the value head."""
        adapters = {n: p for n, p in self.model.named_parameters() if f".{POLICY}." in n or f".{VALUE}." in n}
        return {**adapters, **{f"{VALUE}.head.{n}": p for n, p in self.heads[VALUE].named_parameters()}}

    @contextlib.contextmanager
    def using(self, name: str) -> Iterator[None]:
        """Activate one adapter for the block, in the recipe's precision. Only `policy` and `value` receive gradients.

        With gradient checkpointing, run the backward pass in the same block as the forward pass: it recomputes the forward pass with the
        adapter that is active then.
        """
        from peft.tuners.tuners_utils import BaseTunerLayer

        bare = name == REFERENCE and not self.has_reference
        for module in self.model.modules():
            if isinstance(module, BaseTunerLayer):
                module.enable_adapters(not bare)
                if not bare:
                    module.set_adapter([name], inference_mode=name not in (POLICY, VALUE))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision != "float32"):
            yield

    def hidden(self, name: str, rows: Sequence[Sequence[int]]) -> Tensor:
        """Return the last hidden states of token ids under an adapter, (B, T, H), with rows padded on the right.

        No mask is needed: attention is causal, and the states of padding are not used.
        """
        width = max(map(len, rows))
        tokens_BT = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=self.device)
        with self.using(name):
            return self.causal.base_model(input_ids=tokens_BT, use_cache=False).last_hidden_state  # type: ignore[no-any-return]

    def logprobs(self, hidden_NH: Tensor, targets_N: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """Return the log-probability of a next token and the entropy at each position, in nats, both (N,) in float32.

        The log-probabilities pass gradients to the hidden states; the entropy doesn't.

        Args:
            hidden_NH: (N, H).
            targets_N: token ids, (N,).
            temperature: divides the logits, above 0.
        """
        head = self.causal.get_output_embeddings()
        logps_and_entropies: tuple[Tensor, Tensor] = TokenLogprobs.apply(  # type: ignore[no-untyped-call]
            hidden_NH.float(), head.weight, getattr(head, "bias", None), targets_N, temperature
        )
        return logps_and_entropies

    def value(self, hidden_NH: Tensor) -> Tensor:
        """Return the value head's output, (N,) in float32."""
        return self.heads[VALUE](hidden_NH.float()).squeeze(-1)  # type: ignore[no-any-return]

    @torch.no_grad()
    def scores(self, rows: Sequence[Sequence[int]], names: Sequence[str] | None = None) -> Tensor:
        """Return the scores of M reward models at the last token of each conversation, (M, B), on the CPU.

        Args:
            names: names of the reward models; None takes `members`.
        """
        scores = []
        for name in self.members if names is None else names:
            cut = [row[-self.max_length[name] :] for row in rows]
            hidden_BTH = self.hidden(name, cut)
            last_B = torch.tensor([len(row) - 1 for row in cut], device=self.device)
            scores.append(self.heads[name](hidden_BTH[torch.arange(len(cut), device=self.device), last_B].float()).squeeze(-1).cpu())
        return torch.stack(scores)

    def add_scorer(self, folder: Path, name: str) -> None:
        """Add a frozen reward model to the base, under a name. Raises `ModelError` if the folder has no reward model for this base."""
        self.heads[name] = _add_scorer(self.model, folder, name).to(self.device)
        self.max_length[name] = _max_length(folder)
        for parameter_name, parameter in self.model.named_parameters():
            if f".{name}." in parameter_name:
                parameter.data = parameter.data.to(torch.float32 if self.precision == "float32" else torch.bfloat16)

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        """Set the model to training mode for the block, which gradient checkpointing needs. Dropout stays off."""
        self.model.train()
        try:
            yield
        finally:
            self.model.eval()

    def weights(self, name: str) -> dict[str, Tensor]:
        """Return a copy of an adapter's weights, with PEFT's names for saved weights."""
        from peft import get_peft_model_state_dict

        return {n: t.detach().cpu().contiguous().clone() for n, t in get_peft_model_state_dict(self.model, adapter_name=name).items()}

    def save(self, name: str, folder: Path) -> None:
        """Save an adapter in PEFT's format."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.weights(name), folder / "adapter_model.safetensors", metadata={"format": "pt"})
        config = self.model.peft_config[name]
        before, config.inference_mode = config.inference_mode, True
        config.save_pretrained(folder)
        config.inference_mode = before


def load_shared_base(
    model: ModelSpec,
    precision: Precision,
    sft_adapter: Path | None,
    members: Sequence[Path],
    lora: LoraSpec,
    *,
    gradient_checkpointing: bool = False,
) -> SharedBase:
    """Load the base model once, and add policy, reference, value function and reward models to it.

    Args:
        model: the base model. Its own adapter, if any, is not used.
        precision: `auto`, `float32`, `bfloat16` (float32 adapters under autocast), or `nf4` (the same over a 4-bit base).
        sft_adapter: the policy's start and the reference; None starts from a new adapter, with the base model as the reference.
        members: folders of reward models, at least one.
        lora: shape of a new policy adapter, if there is no SFT adapter.

    Raises:
        TrainingError: there is no reward model, or the model changes its logits after the output layer.
    """
    if not members:
        raise TrainingError("no reward model to score responses with.\nFix: train one first (the `reward` stage)")
    precision = resolved_precision(precision)
    base = load_causal_lm(replace(model, adapter=None, precision=precision), trainable=True)
    if sft_adapter is None:
        shared_model = with_new_adapter(base, lora, name=POLICY)
    else:
        shared_model = with_adapter(base, str(sft_adapter), model.path, trainable=True, name=POLICY)
        shared_model.load_adapter(str(sft_adapter), REFERENCE, use_safetensors=True)
    shared = SharedBase(shared_model, {}, {}, precision, sft_adapter is not None)
    for i, folder in enumerate(members):
        shared.add_scorer(folder, f"reward_{i}")
    shared.heads[VALUE] = _add_scorer(shared_model, members[0], VALUE).to(shared.device).requires_grad_(True)
    for name, parameter in shared_model.named_parameters():
        if f".{POLICY}." in name or f".{VALUE}." in name:
            parameter.data = parameter.data.float()
        elif f".{REFERENCE}." in name:
            parameter.data = parameter.data.to(torch.float32 if precision == "float32" else torch.bfloat16)
    for module in shared_model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    if gradient_checkpointing:
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    shared_model.eval()
    _check_logits(shared)
    return shared


def _add_scorer(model: Any, folder: Path, name: str) -> nn.Linear:
    """Add a reward model's LoRA weights to the causal model as an adapter; return its scalar head, frozen. Raises `ModelError`."""
    from peft import LoraConfig, set_peft_model_state_dict

    try:
        config = LoraConfig.from_pretrained(folder)
        weights = adapter_weights(folder)
    except (OSError, ValueError) as e:
        raise ModelError(f"{folder}: not a reward model ({str(e).splitlines()[0]}).\nFix: run the `reward` stage first") from e
    head = {n.rpartition(".")[2]: t for n, t in weights.items() if ".score." in n}
    if "weight" not in head or head["weight"].shape[0] != 1:
        raise ModelError(f"{folder}: the adapter has no scalar head, so it is not a reward model.\nFix: name a folder that `reward` wrote")
    config.task_type, config.modules_to_save, config.lora_dropout = "CAUSAL_LM", None, 0.0
    model.add_adapter(name, config)
    loaded = set_peft_model_state_dict(model, {n: t for n, t in weights.items() if ".score." not in n}, adapter_name=name)
    missing = [n for n in loaded.missing_keys if f".{name}." in n]
    if missing or loaded.unexpected_keys:
        raise ModelError(
            f"{folder}: this reward model doesn't fit the policy's base model "
            f"({len(missing)} weights missing, {len(loaded.unexpected_keys)} too many).\n"
            "Fix: train it on the same base model as the policy"
        )
    linear = nn.Linear(head["weight"].shape[1], 1).requires_grad_(False)
    linear.weight.copy_(head["weight"])
    linear.bias.fill_(float(head.get("bias", torch.zeros(1))) - read_centre(folder))
    return linear


def _max_length(folder: Path) -> int:
    """Return a reward model's longest conversation in tokens, which is stored in its tokenizer."""
    from transformers import AutoTokenizer

    from cai.models.local.quiet import quiet_transformers

    with quiet_transformers():
        return int(AutoTokenizer.from_pretrained(folder).model_max_length)


@torch.no_grad()
def _check_logits(shared: SharedBase) -> None:
    """Raise `TrainingError` if the model changes its logits after the output layer (soft cap, scale): log-probabilities would be wrong."""
    ids = [1, 2, 3]
    with shared.using(POLICY):
        model_V = shared.causal(torch.tensor([ids], device=shared.device), use_cache=False).logits[0, -1].float()
    hidden_H = shared.hidden(POLICY, [ids])[0, -1].float()
    head = shared.causal.get_output_embeddings()
    plain_V = hidden_H @ head.weight.float().T + (0.0 if getattr(head, "bias", None) is None else head.bias.float())
    if (plain_V - model_V).abs().max() > SAME_LOGITS * model_V.abs().max():
        raise TrainingError(
            f"{shared.causal.config.model_type}: this model changes its logits after the output layer (a soft cap or a scale), "
            "which PPO doesn't support.\nFix: use policy.method: dpo, or another base model"
        )


class TokenLogprobs(torch.autograd.Function):
    """Log-probability of given tokens and entropy, from hidden states, with logits in memory for only one tile of both axes at a time.

    The forward pass saves only the normaliser of each position; the backward pass recomputes each tile. d logp / d logit is
    1[target] − softmax.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, targets_N: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        """Return log-probabilities and entropies, both (N,)."""
        normaliser_N = hidden_NH.new_full((len(hidden_NH),), -torch.inf)
        chosen_N = torch.zeros_like(normaliser_N)
        expected_N = torch.zeros_like(normaliser_N)  # Σ p·logit, under the part of the vocabulary seen so far
        for rows, start, logits in _tiles(hidden_NH, weight_VH, bias_V, temperature):
            new = torch.logaddexp(normaliser_N[rows], logits.logsumexp(-1))
            probs = (logits - new[:, None]).exp_()
            expected_N[rows] = expected_N[rows] * (normaliser_N[rows] - new).exp() + (probs * logits).sum(-1)
            normaliser_N[rows] = new
            here = (targets_N[rows] >= start) & (targets_N[rows] < start + logits.shape[1])
            at = (targets_N[rows] - start).clamp(0, logits.shape[1] - 1)
            chosen_N[rows] += torch.where(here, logits.gather(1, at[:, None])[:, 0], 0.0)
        ctx.save_for_backward(hidden_NH, weight_VH, bias_V, targets_N, normaliser_N)
        ctx.temperature = temperature
        entropy_N = normaliser_N - expected_N
        ctx.mark_non_differentiable(entropy_N)
        return chosen_N - normaliser_N, entropy_N

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        """Return the gradient of the hidden states, (N, H)."""
        hidden_NH, weight_VH, bias_V, targets_N, normaliser_N = ctx.saved_tensors
        scaled_N = gradients[0] / ctx.temperature
        total_NH = torch.zeros_like(hidden_NH)
        for rows, start, logits in _tiles(hidden_NH, weight_VH, bias_V, ctx.temperature):
            slope = (logits - normaliser_N[rows][:, None]).exp_().neg_()
            inside = ((targets_N[rows] >= start) & (targets_N[rows] < start + logits.shape[1])).nonzero()[:, 0]
            slope[inside, targets_N[rows][inside] - start] += 1.0
            total_NH[rows] += (slope * scaled_N[rows][:, None]) @ weight_VH[start : start + logits.shape[1]].float()
        return total_NH, None, None, None, None


def _tiles(hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, temperature: float) -> Iterator[tuple[slice, int, Tensor]]:
    """Yield tiles: a range of positions, the start of a part of the vocabulary, and the tile's float32 logits."""
    with torch.autocast(hidden_NH.device.type, enabled=False):
        for start in range(0, len(weight_VH), VOCABULARY_PART):
            part_VH = weight_VH[start : start + VOCABULARY_PART].float()
            for first in range(0, len(hidden_NH), POSITIONS):
                rows = slice(first, first + POSITIONS)
                logits = hidden_NH[rows] @ part_VH.T
                if bias_V is not None:
                    logits += bias_V[start : start + VOCABULARY_PART].float()
                yield rows, start, logits.div_(temperature)
