"""A policy in training: sampling with its unmerged adapter, and KL to its reference.

Sampling uses `cai.models.local.generate` instead of `transformers.generate`: every completion has its own seed, so samples don't depend on
batching, and a resumed training samples the same completions as an uninterrupted one.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from cai.models.local.engine import stop_ids
from cai.models.local.generate import CompletionRow, complete, float_logits, score
from cai.models.local.thinking import thinking_budget
from cai.recipe import OnlineConfig, PPOSpec
from cai.records import Prompt
from cai.train.encode import encoder_of

ROWS = 64
"""Sequences per batch, to limit memory."""


@dataclass
class LivePolicy:
    """A PEFT model in training."""

    model: Any
    tokenizer: Any

    @property
    def reference(self) -> str | None:
        """Name of the reference adapter; None if the reference is the base model."""
        return "ref" if "ref" in self.model.peft_config else None

    def encode(self, prompt: Prompt) -> list[int]:
        """Return a prompt's token ids, with the header of the assistant's turn. Raises `ReplyError` if the template refuses it."""
        return encoder_of(self.tokenizer).prompt(prompt.messages)[0]

    def decode(self, completion: Sequence[int]) -> str:
        """Return a completion's answer, without its reasoning; empty if the reasoning doesn't end."""
        return encoder_of(self.tokenizer).answer(completion)

    def sample(
        self, prompts: Sequence[Sequence[int]], max_tokens: int, temperature: float, seeds: Sequence[int], *, thinking_tokens: int = 0
    ) -> list[list[int]]:
        """Return a completion of each prompt. It includes the end token, if it has ended.

        Args:
            max_tokens: longest completion, in tokens.
            temperature: sampling temperature, above 0.
            seeds: one per prompt.
            thinking_tokens: longest reasoning before it, in tokens; 0: it shares `max_tokens`.
        """
        budget = thinking_budget(encoder_of(self.tokenizer).sampled, max_tokens, thinking_tokens)
        rows = [CompletionRow(p, max_tokens, temperature, 1.0, s, budget) for p, s in zip(prompts, seeds, strict=True)]
        order = sorted(range(len(rows)), key=lambda i: (len(rows[i].prompt), i))
        completions: list[list[int]] = [[] for _ in rows]
        base = self.model.get_base_model()
        stops = stop_ids(base, encoder_of(self.tokenizer))
        with self._inference():
            for start in range(0, len(rows), ROWS):
                part = order[start : start + ROWS]
                for i, (ids, _) in zip(part, complete(base, [rows[i] for i in part], stops, keep_stop=True), strict=True):
                    completions[i] = ids
        return completions

    def kl(self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]) -> list[float]:
        """Return each completion's log-ratio of policy to reference, in nats. Its mean over samples of the policy estimates the KL.

        Args:
            completions: sampled from the policy at temperature 1, with their end tokens; none is empty.
        """
        from trl.trainer.utils import use_adapter

        items = list(zip(prompts, completions, strict=True))
        with self._inference():
            policy = self._logps(items)
            with use_adapter(self.model, adapter_name=self.reference):
                reference = self._logps(items)
        return [p - r for p, r in zip(policy, reference, strict=True)]

    def _logps(self, items: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[float]:
        base = self.model.get_base_model()
        with float_logits(base):
            return [x for start in range(0, len(items), ROWS) for x in score(base, items[start : start + ROWS])]

    @contextlib.contextmanager
    def _inference(self) -> Iterator[None]:
        """Set evaluation mode for the block: no dropout, no gradient checkpointing, plain attention instead of that of packed pairs."""
        from cai.train.packing import ATTENTION, backbone_of

        before, backbone = self.model.training, backbone_of(self.model)
        packed = backbone.config.get_text_config()._attn_implementation == ATTENTION
        self.model.eval()
        if packed:
            backbone.set_attn_implementation("sdpa")
        try:
            yield
        finally:
            self.model.train(before)
            if packed:
                backbone.set_attn_implementation(ATTENTION)


def shared_limit_warning(tokenizer: Any, settings: OnlineConfig | PPOSpec, key: str) -> str:
    """Return what to set where a policy thinks before every answer and has no limit of its own for that; empty for other policies."""
    if settings.thinking_tokens or not encoder_of(tokenizer).opened:
        return ""
    return (
        f"the policy's chat template lets it think before every answer, and both share {settings.most_tokens} tokens, so samples may end "
        f"without an answer. Set policy.{key}.thinking_tokens, or model.thinking: false if the template has that switch"
    )
