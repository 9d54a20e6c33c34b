"""PPO as one would write it otherwise, for the benches: a whole model for each role, padded batches, `generate` to sample.

That is what TRL's PPO trainer was. What is not a matter of models (advantages, losses, their settings) is this project's own, so that a
step from the same weights and responses gives the same losses.

Import it inside functions only: it loads torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cai.models.local.loading import load_causal_lm
from cai.recipe import ModelSpec, PolicyConfig
from cai.train.reward.ensemble import load_scorer
from cai.train.rl.ppo_math import policy_loss, value_loss
from cai.train.rl.ppo_update import Batch
from cai.train.rl.rollout import Episode, Task
from cai.train.rl.shared_base import TokenLogprobs
from cai.train.running import float_trained_weights


@dataclass(frozen=True)
class Padded:
    """Prompts with padding on the left, responses with padding on the right."""

    tokens_BT: Tensor
    seen_BT: Tensor
    mask_BR: Tensor
    """Which of the response's positions are tokens."""

    @property
    def start(self) -> int:
        """Position of the responses' first tokens."""
        return self.tokens_BT.shape[1] - self.mask_BR.shape[1]

    @property
    def responses_BR(self) -> Tensor:
        """The responses' tokens."""
        return self.tokens_BT[:, self.start :]


@dataclass
class Separate:
    """Four or more whole models."""

    policy: Any
    reference: Any
    value: Any
    rewards: list[Any]
    tokenizer: Any
    precision: str
    lean: bool
    """Make no whole logits while training, as this project does."""

    def computing(self) -> Any:
        """The precision of forward passes."""
        return torch.autocast("cpu", torch.bfloat16, enabled=self.precision != "float32")

    def sample(self, prompts: Sequence[Sequence[int]], max_tokens: int, temperature: float, stop_ids: frozenset[int]) -> list[list[int]]:
        """Return a response to each prompt, with the token that ended it."""
        self.tokenizer.padding_side = "left"
        asked = self.tokenizer.pad({"input_ids": list(prompts)}, return_tensors="pt")
        with torch.no_grad(), self.computing():
            made_BT = self.policy.generate(
                **asked,
                max_new_tokens=max_tokens,
                do_sample=True,
                temperature=temperature,
                top_k=0,
                top_p=1.0,
                eos_token_id=sorted(stop_ids),
            )
        found = []
        for row in made_BT[:, asked["input_ids"].shape[1] :].tolist():
            end = next((i for i, token in enumerate(row) if token in stop_ids), len(row) - 1)
            found.append(row[: end + 1])
        return found

    def pad(self, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> Padded:
        """Return prompts and responses as one batch."""
        longest, width = max(map(len, prompts)), max(map(len, responses))
        rows, seen, mask = [], [], []
        for prompt, response in zip(prompts, responses, strict=True):
            left, right = longest - len(prompt), width - len(response)
            rows.append([*[self.tokenizer.pad_token_id] * left, *prompt, *response, *[self.tokenizer.pad_token_id] * right])
            seen.append([*[0] * left, *[1] * (len(prompt) + len(response)), *[0] * right])
            mask.append([*[True] * len(response), *[False] * right])
        return Padded(torch.tensor(rows), torch.tensor(seen), torch.tensor(mask))

    def logps(self, of: Any, batch: Padded, rows: slice, temperature: float) -> Tensor:
        """Return the log-probabilities of response tokens, (B, R)."""
        inputs = {"input_ids": batch.tokens_BT[rows], "attention_mask": batch.seen_BT[rows], "use_cache": False}
        told_BR, positions = batch.responses_BR[rows], slice(batch.start - 1, -1)
        if not self.lean:
            logits = of(**inputs).logits[:, positions] / temperature
            return torch.log_softmax(logits, -1).gather(2, told_BR[:, :, None])[:, :, 0].float()
        hidden = of.get_base_model().base_model(**inputs).last_hidden_state[:, positions]
        flat = hidden.reshape(-1, hidden.shape[-1]).float()
        return TokenLogprobs.apply(flat, of.get_output_embeddings().weight, None, told_BR.reshape(-1), temperature)[0].view(told_BR.shape)

    def values(self, of: Any, batch: Padded, rows: slice) -> Tensor:
        """Return what a model with a scalar head says at each position, (B, T)."""
        inner = of.get_base_model()
        inputs = {"input_ids": batch.tokens_BT[rows], "attention_mask": batch.seen_BT[rows], "use_cache": False}
        return inner.score(inner.base_model(**inputs).last_hidden_state).squeeze(-1).float()

    @torch.no_grad()
    def describe(self, todo: Sequence[Task], responses: Sequence[tuple[list[int], bool]], micro: int, temperature: float) -> list[Episode]:
        """Return what each model says of some responses, as `cai.train.rl.rollout.evaluate_responses` does, without entropies."""
        prompts = [t.prompt_ids for t in todo]
        batch = self.pad(prompts, [ids for ids, _ in responses])
        closed = self.pad(prompts, [ids if ended else [*ids, self.tokenizer.eos_token_id] for ids, ended in responses])
        last_B = closed.start + closed.mask_BR.sum(1) - 1
        found = []
        for start in range(0, len(todo), micro):
            rows = slice(start, start + micro)
            with self.computing():
                logps = self.logps(self.policy, batch, rows, temperature).tolist()
                ref_logps = self.logps(self.reference, batch, rows, temperature).tolist()
                values = self.values(self.value, batch, rows)[:, batch.start - 1 : -1].tolist()
                scores = [self.values(of, closed, rows).gather(1, last_B[rows, None])[:, 0].tolist() for of in self.rewards]
            for i, (task, (ids, ended)) in enumerate(zip(todo[rows], responses[rows], strict=True)):
                n = len(ids)
                told = (logps[i][:n], ref_logps[i][:n], [0.0] * n, values[i][:n], [s[i] for s in scores])
                found.append(Episode(task.index, task.prompt_ids, ids, ended, *told))
        return found

    def trained(self) -> list[Any]:
        """Return the weights that train."""
        return [p for of in (self.policy, self.value) for p in of.parameters() if p.requires_grad]

    def update(self, optimizer: Any, batch: Batch, config: PolicyConfig) -> dict[str, float]:
        """Train policy and value function on a batch in one minibatch; return the losses, averaged over the passes."""
        spec, trained = config.ppo, self.trained()
        padded = self.pad([e.prompt_ids for e in batch.episodes], [e.response_ids for e in batch.episodes])
        count = int(batch.mask_BT.sum())
        sums = {"loss/policy_avg": 0.0, "loss/value_avg": 0.0, "grad_norm": 0.0}
        for _ in range(spec.num_ppo_epochs):
            for start in range(0, len(batch.episodes), config.batch_size):
                rows = slice(start, start + config.batch_size)
                mask_BR = batch.mask_BT[rows]
                with self.computing():
                    logps_BR = self.logps(self.policy, padded, rows, spec.temperature)
                old = (batch.logps_BT[rows], batch.advantages_BT[rows], mask_BR)
                loss, _ = policy_loss(logps_BR, *old, cliprange=spec.cliprange, count=count)
                loss.backward()
                sums["loss/policy_avg"] += float(loss.detach())
                with self.computing():
                    values_BR = self.values(self.value, padded, rows)[:, padded.start - 1 : -1]
                targets = (batch.values_BT[rows], batch.returns_BT[rows], mask_BR)
                loss, _ = value_loss(values_BR, *targets, cliprange_value=spec.cliprange_value, count=count)
                (spec.vf_coef * loss).backward()
                sums["loss/value_avg"] += float(loss.detach())
            sums["grad_norm"] += float(torch.nn.utils.clip_grad_norm_(trained, spec.max_grad_norm))
            optimizer.step()
            optimizer.zero_grad()
        return {name: total / spec.num_ppo_epochs for name, total in sums.items()}


def load_separate(spec: ModelSpec, sft: Path, members: Sequence[Path], tokenizer: Any, *, checkpointing: bool, lean: bool) -> Separate:
    """Load a model for each role: policy and reference from the SFT adapter, the value function from the first reward member."""
    from peft import PeftModel

    def load(folder: Path, trainable: bool) -> Any:
        base = load_causal_lm(spec, trainable=True) if folder == sft else load_scorer(spec, tokenizer.pad_token_id)
        made = PeftModel.from_pretrained(base, str(folder), is_trainable=trainable)
        if not trainable:
            return made.to(torch.float32 if spec.precision == "float32" else torch.bfloat16)
        if checkpointing:  # it works in training mode only
            base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            made.train()
        return float_trained_weights(made)

    rewards = [load(folder, False) for folder in members]
    return Separate(load(sft, True), load(sft, False), load(members[0], True), rewards, tokenizer, spec.precision, lean)
