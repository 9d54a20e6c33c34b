"""One base model in memory, and every role of reinforcement learning as a LoRA adapter or a scalar head on it.

PPO needs a policy, its reference, a value function and one or more reward models. Loaded whole they are four or more models; here the
base is loaded once, and a role costs what its adapter costs, some hundredth of that. What each is, and why:

1. `policy` starts as a copy of the SFT adapter, and trains.
2. `reference` is the SFT adapter, frozen; without an SFT adapter it is the base with no adapter on.
3. `value` is an adapter of its own with a scalar head, and trains. It starts as a copy of the first reward member, head and all
   (Ziegler et al. 2019, Stiennon et al. 2020): what it has to predict is mostly that member's score. A bare head over the policy's
   hidden states would be smaller, but then either the value loss pulls at the policy's weights, or the head has to read values out of
   features made for the next token.
4. `reward_0`, `reward_1`, … are what `train_reward` saved: LoRA weights, whose names match the causal model's, and a `score` head.

Trained weights are float32. Frozen adapters are kept in the precision that the forward pass computes in, which rounds them to it anyway.

Logits exist only for the positions that are asked for, in float32, and for a part of the vocabulary at a time (`TokenLogprobs`): in
bfloat16 a logit of 20 comes in steps of 1/8, which is more than a policy moves in a step. Dropout is off: between sampling and
training it would look like a change of the policy.

Import it inside functions only: it loads torch.
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
from cai.models.local.loading import load_causal_lm
from cai.models.local.precision import resolved_precision
from cai.recipe import GOLD, LoraSpec, ModelSpec, Precision
from cai.train.arguments import with_new_adapter
from cai.train.reward.ensemble import read_centre

POLICY, REFERENCE, VALUE = "policy", "reference", "value"
VOCABULARY_PART = 8192
"""Rows of the output layer that are float32 at one time."""
POSITIONS = 512
"""Positions whose logits exist at one time."""
SAME_LOGITS = 0.05
"""Largest difference between our logits and the model's own, as a share of the largest logit; bfloat16 rounds to 0.004."""


@dataclass
class SharedBase:
    """The base with its adapters on, in evaluation mode unless `training` is on."""

    model: Any
    """PEFT's model."""
    heads: dict[str, nn.Linear]
    """Scalar heads by adapter, float32: of the value function and of each reward member, whose bias takes its centre off its scores."""
    max_length: dict[str, int]
    """Tokens that each reward model sees of a conversation; a longer one loses its beginning."""
    precision: str
    has_reference: bool
    """Whether the reference is an adapter; else it is the bare base."""

    @property
    def causal(self) -> Any:
        """The `transformers` model that the adapters sit in."""
        return self.model.get_base_model()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.causal.device  # type: ignore[no-any-return]

    @property
    def members(self) -> tuple[str, ...]:
        """Names of the reward members."""
        return tuple(name for name in self.max_length if name != GOLD)

    def trained(self) -> dict[str, nn.Parameter]:
        """Return the weights that train, by name: the policy's and the value function's adapters, and the value head."""
        found = {n: p for n, p in self.model.named_parameters() if f".{POLICY}." in n or f".{VALUE}." in n}
        return {**found, **{f"{VALUE}.head.{n}": p for n, p in self.heads[VALUE].named_parameters()}}

    @contextlib.contextmanager
    def using(self, name: str) -> Iterator[None]:
        """Run the block with one adapter on, in the precision of the recipe; gradients reach `policy` and `value` only.

        What is recorded in a block must be differentiated in it too where gradient checkpointing is on: the backward pass runs the
        forward pass again, with the adapter that is on then.
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
        """Return the last hidden states of some token ids under an adapter, (B, T, H), with rows padded on the right.

        No mask is needed: a position sees only what comes before it, and no one asks for the padding's states.
        """
        width = max(map(len, rows))
        tokens_BT = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=self.device)
        with self.using(name):
            return self.causal.base_model(input_ids=tokens_BT, use_cache=False).last_hidden_state  # type: ignore[no-any-return]

    def logprobs(self, hidden_NH: Tensor, targets_N: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """Return the log-probability of a next token at each position, and the entropy there, in nats, both (N,) in float32.

        Gradients flow through the log-probabilities to the hidden states, and not through the entropy.

        Args:
            hidden_NH: (N, H).
            targets_N: token ids, (N,).
            temperature: divides the logits, above 0.
        """
        head = self.causal.get_output_embeddings()
        found: tuple[Tensor, Tensor] = TokenLogprobs.apply(  # type: ignore[no-untyped-call]
            hidden_NH.float(), head.weight, getattr(head, "bias", None), targets_N, temperature
        )
        return found

    def value(self, hidden_NH: Tensor) -> Tensor:
        """Return the value head's output, (N,) in float32."""
        return self.heads[VALUE](hidden_NH.float()).squeeze(-1)  # type: ignore[no-any-return]

    @torch.no_grad()
    def scores(self, rows: Sequence[Sequence[int]], names: Sequence[str] | None = None) -> Tensor:
        """Return what reward models give to each conversation that ends at its last token, (M, B), on the CPU.

        Args:
            rows: token ids.
            names: of the reward models; None takes the members.
        """
        found = []
        for name in self.members if names is None else names:
            cut = [row[-self.max_length[name] :] for row in rows]
            hidden_BTH = self.hidden(name, cut)
            last_B = torch.tensor([len(row) - 1 for row in cut], device=self.device)
            found.append(self.heads[name](hidden_BTH[torch.arange(len(cut), device=self.device), last_B].float()).squeeze(-1).cpu())
        return torch.stack(found)

    def add_scorer(self, folder: Path, name: str) -> None:
        """Put a reward model on the base, frozen, under a name. Raises `ModelError` where the folder holds none for this base."""
        self.heads[name] = _add_scorer(self.model, folder, name).to(self.device)
        self.max_length[name] = _max_length(folder)
        for parameter_name, parameter in self.model.named_parameters():
            if f".{name}." in parameter_name:
                parameter.data = parameter.data.to(torch.float32 if self.precision == "float32" else torch.bfloat16)

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        """Put the model into training mode for the block: gradient checkpointing works in it only. Dropout stays off."""
        self.model.train()
        try:
            yield
        finally:
            self.model.eval()

    def weights(self, name: str) -> dict[str, Tensor]:
        """Return a copy of an adapter's weights, under the names that PEFT saves them under."""
        from peft import get_peft_model_state_dict

        return {n: t.detach().cpu().contiguous().clone() for n, t in get_peft_model_state_dict(self.model, adapter_name=name).items()}

    def save(self, name: str, folder: Path) -> None:
        """Write an adapter as PEFT does, so that anything that loads adapters loads it."""
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
    """Load the base once, and put every role on it.

    Args:
        model: the base model; its own adapter, if any, is not used.
        precision: `auto`, `float32`, `bfloat16` (float32 adapters under autocast), or `nf4` (the same over a 4-bit base).
        sft_adapter: where the policy starts, and the reference; None starts a new adapter, with the bare base as the reference.
        members: folders of reward models, at least one.
        lora: shape of a new policy adapter, where there is no SFT adapter.
        gradient_checkpointing: compute activations again in the backward pass, which saves memory.

    Raises:
        ModelError: the model or an adapter can't be loaded, or is not for this base.
        TrainingError: no reward member, or the model does something to its logits after the output layer.
    """
    from peft import PeftModel

    if not members:
        raise TrainingError("no reward model to score responses with.\nFix: train one first (the `reward` stage)")
    precision = resolved_precision(precision)
    base = load_causal_lm(replace(model, adapter=None, precision=precision), trainable=True)
    if sft_adapter is None:
        shared_model = with_new_adapter(base, lora, name=POLICY)
    else:
        shared_model = PeftModel.from_pretrained(base, str(sft_adapter), adapter_name=POLICY, is_trainable=True, use_safetensors=True)
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
    """Put a reward model's LoRA weights on the causal model as an adapter; return its scalar head, frozen. Raises `ModelError`."""
    from peft import LoraConfig, set_peft_model_state_dict
    from safetensors.torch import load_file

    try:
        config = LoraConfig.from_pretrained(folder)
        weights = load_file(folder / "adapter_model.safetensors")
    except (OSError, ValueError) as e:
        raise ModelError(f"{folder}: no reward model is there ({str(e).splitlines()[0]}).\nFix: run the `reward` stage first") from e
    head = {n.rpartition(".")[2]: t for n, t in weights.items() if ".score." in n}
    if "weight" not in head or head["weight"].shape[0] != 1:
        raise ModelError(f"{folder}: an adapter without a scalar head, so it is no reward model.\nFix: name a folder that `reward` wrote")
    config.task_type, config.modules_to_save, config.lora_dropout = "CAUSAL_LM", None, 0.0
    model.add_adapter(name, config)
    found = set_peft_model_state_dict(model, {n: t for n, t in weights.items() if ".score." not in n}, adapter_name=name)
    missing = [n for n in found.missing_keys if f".{name}." in n]
    if missing or found.unexpected_keys:
        raise ModelError(
            f"{folder}: this reward model doesn't fit the policy's base "
            f"({len(missing)} weights missing, {len(found.unexpected_keys)} too many).\n"
            "Fix: train it on the same base model as the policy"
        )
    linear = nn.Linear(head["weight"].shape[1], 1).requires_grad_(False)
    linear.weight.copy_(head["weight"])
    linear.bias.fill_(float(head.get("bias", torch.zeros(1))) - read_centre(folder))
    return linear


def _max_length(folder: Path) -> int:
    """Return the tokens that a reward model was trained to see; its tokenizer carries the number."""
    from transformers import AutoTokenizer

    from cai.models.local.quiet import quiet_transformers

    with quiet_transformers():
        return int(AutoTokenizer.from_pretrained(folder).model_max_length)


@torch.no_grad()
def _check_logits(shared: SharedBase) -> None:
    """Raise `TrainingError` for a model whose logits are not its output layer's (soft caps, scales): log-probabilities would be wrong."""
    ids = [1, 2, 3]
    with shared.using(POLICY):
        theirs_V = shared.causal(torch.tensor([ids], device=shared.device), use_cache=False).logits[0, -1].float()
    hidden_H = shared.hidden(POLICY, [ids])[0, -1].float()
    head = shared.causal.get_output_embeddings()
    ours_V = hidden_H @ head.weight.float().T + (0.0 if getattr(head, "bias", None) is None else head.bias.float())
    if (ours_V - theirs_V).abs().max() > SAME_LOGITS * theirs_V.abs().max():
        raise TrainingError(
            f"{shared.causal.config.model_type}: this model changes its logits after the output layer (a soft cap or a scale), "
            "which PPO on a shared base doesn't follow.\nFix: use policy.method: dpo, or another base model"
        )


class TokenLogprobs(torch.autograd.Function):
    """Log-probability of chosen tokens and entropy, from hidden states, without logits for more than a tile of both axes.

    Forward keeps only the normaliser of each position; backward makes each tile again. d logp / d logit is 1[target] − softmax.
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
    """Yield a range of positions, where a part of the vocabulary starts, and the float32 logits of the two."""
    with torch.autocast(hidden_NH.device.type, enabled=False):
        for start in range(0, len(weight_VH), VOCABULARY_PART):
            part_VH = weight_VH[start : start + VOCABULARY_PART].float()
            for first in range(0, len(hidden_NH), POSITIONS):
                rows = slice(first, first + POSITIONS)
                logits = hidden_NH[rows] @ part_VH.T
                if bias_V is not None:
                    logits += bias_V[start : start + VOCABULARY_PART].float()
                yield rows, start, logits.div_(temperature)
