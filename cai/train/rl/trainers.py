"""TRL's GRPO and RLOO trainers with `cai`'s sampling, rewards and checks.

Import this module inside functions only: it loads torch and TRL. It needs TRL 1.16, whose private hooks it uses: `_tokenize_prompts`,
`_generate_single_turn`, `_get_per_token_logps_and_entropies`.
"""

from collections.abc import Callable, Sequence
from typing import Any

from transformers import TrainerCallback
from trl import GRPOTrainer, RLOOTrainer

from cai.errors import TrainingError
from cai.ids import derive_seed
from cai.models.local.encoding import Encoder
from cai.records import Message, Prompt
from cai.train.encode import encoder_of
from cai.train.live_policy import LivePolicy
from cai.train.rl.rewards import RewardFunction
from cai.train.trainers import Resumable, completion_positions_only

FIRST_KL = 0.01
"""Largest KL to the reference before the first update, in nats per token. Both have the same weights then, so only rounding may differ."""


class SeededSamples(Resumable):
    """Samples with `LivePolicy`, each completion with its own seed."""

    thinking_tokens = 0
    """Part of `max_completion_length` that is for the reasoning alone."""

    def token_ids(self, prompts: list[list[dict[str, str]]]) -> list[list[int]]:
        """Return token ids. Special tokens inside messages are encoded as plain text, as at inference."""
        encoder = encoder_of(self.processing_class)
        return [encoder.prompt([Message(m["role"], m["content"]) for m in prompt])[0] for prompt in prompts]  # type: ignore[arg-type]

    def sampled(self, prompt_ids: Sequence[Sequence[int]]) -> list[list[int]]:
        """Return a completion of each prompt."""
        first = self.accelerator.process_index * len(prompt_ids)  # so that samples don't depend on the number of processes
        seeds = [derive_seed(self.args.seed, "rollout", self.state.global_step, first + i) for i in range(len(prompt_ids))]
        policy = LivePolicy(self.accelerator.unwrap_model(self.model), self.processing_class)
        thinking = self.thinking_tokens
        return policy.sample(prompt_ids, self.max_completion_length - thinking, self.temperature, seeds, thinking_tokens=thinking)

    @property
    def sharded(self) -> bool:
        """Whether weights are sharded over processes. Only TRL's own generation gathers them."""
        return bool(self.is_fsdp_enabled or self.is_deepspeed_enabled)


class _OnlineRun(SeededSamples):
    """Computes logits at completion positions only."""

    def _tokenize_prompts(self, prompts: list[list[dict[str, str]]]) -> tuple[list[list[int]], None, dict[str, Any]]:
        return self.token_ids(prompts), None, {}

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        with completion_positions_only():
            return super()._get_per_token_logps_and_entropies(*args, **kwargs)


class GRPORun(_OnlineRun, GRPOTrainer):  # type: ignore[misc]
    """Group-relative policy optimization (arXiv 2402.03300)."""

    def _generate_single_turn(self, prompt_ids: Any, images: Any, fields: Any, *args: Any, **kwargs: Any) -> Any:
        if self.sharded:
            return super()._generate_single_turn(prompt_ids, images, fields, *args, **kwargs)
        return self.sampled(prompt_ids), None


class RLOORun(_OnlineRun, RLOOTrainer):  # type: ignore[misc]
    """REINFORCE with a leave-one-out baseline (arXiv 2402.14740)."""

    def _generate_single_turn(self, prompt_ids: Any, images: Any, fields: Any, *args: Any, **kwargs: Any) -> Any:
        if self.sharded:
            return super()._generate_single_turn(prompt_ids, images, fields, *args, **kwargs)
        return self.sampled(prompt_ids)


def reward_function(
    rewards_of: RewardFunction, prompts: Sequence[Prompt], encoder: Encoder, stops: frozenset[int], missing_eos_penalty: float | None
) -> Callable[..., list[float | None]]:
    """Return TRL's form of a reward function. It logs the mean of every term, and the ensemble's disagreement.

    Args:
        missing_eos_penalty: subtracted from the reward of a completion that doesn't end with one of them, or has no answer after its
            reasoning; None subtracts nothing.
    """
    by_id = {p.id: p for p in prompts}
    penalty = missing_eos_penalty or 0.0

    def reward(completion_ids: list[list[int]], id: list[str], log_metric: Callable[[str, float], None], **_: Any) -> list[float | None]:
        said = [ids[:-1] if ids[-1] in stops else ids for ids in completion_ids]
        answers = list(map(encoder.answer, said))
        rewards = rewards_of.score([(by_id[i], answer) for i, answer in zip(id, answers, strict=True)])
        if all(r is None for r in rewards.totals):
            raise TrainingError(
                f"none of {len(answers)} completions of a step could be rewarded.\nFix: check the terms of policy.online.rewards"
            )
        for name, values in rewards.by_term.items():
            known = [v for v in values if v is not None]
            if known:
                log_metric(f"terms/{name}", sum(known) / len(known))
        if rewards.disagreement:
            log_metric("disagreement", sum(rewards.disagreement) / len(rewards.disagreement))
        log_metric("unrewarded", sum(r is None for r in rewards.totals) / len(answers))
        cut = [ids[-1] not in stops or encoder.only_reasons(part) for ids, part in zip(completion_ids, said, strict=True)]
        return [None if r is None else r - penalty * c for r, c in zip(rewards.totals, cut, strict=True)]

    return reward


class RewardAlarm(TrainerCallback):  # type: ignore[misc]
    """Stops a training whose rewards don't differ within groups, or whose policy did not start at its reference."""

    def __init__(self, patience: int, warn: Callable[[str], None]) -> None:
        self.patience = patience
        self.warn = warn

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Check a step's metrics. Raises `TrainingError`."""
        if logs is None or "frac_reward_zero_std" not in logs:
            return
        if state.global_step == 1 and abs(logs["kl"]) > FIRST_KL:
            raise TrainingError(
                f"before the first update the policy already differs from its reference: {logs['kl']:.3f} nats per token, "
                f"expected at most {FIRST_KL}. The reference is not the adapter that training starts from."
            )
        flat = 0
        for entry in reversed([e for e in state.log_history if "frac_reward_zero_std" in e]):
            if entry["frac_reward_zero_std"] < 1.0:
                break
            flat += 1
        if flat >= self.patience:
            raise TrainingError(
                f"for {flat} steps in a row all completions of each prompt had the same reward, so the policy learned nothing.\n"
                "Fix: raise policy.online.temperature or num_generations, or choose rewards that differ between responses"
            )
        if flat == 1 and state.is_world_process_zero:
            self.warn(f"step {state.global_step}: all completions of each prompt have the same reward, so the policy learns nothing")
