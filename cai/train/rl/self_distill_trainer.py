"""TRL's SDFT trainer with `cai`'s sampling, a frozen copy of the start as the teacher, and a guard on the length of answers.

Import this module inside functions only: it loads torch and TRL. It needs TRL 1.16, where SDFT is experimental, and uses its private hooks
`_generate`, `_tokenize_prompts` and `_get_teacher_context_for_self_distillation`.
"""

from collections.abc import Callable
from statistics import fmean
from typing import Any

from transformers import TrainerCallback
from trl.experimental.sdft import SDFTTrainer
from trl.experimental.sdft.sdft_trainer import DemonstrationTeacherContextBuilder

from cai.train.rl.trainers import SeededSamples
from cai.train.trainers import reference_of

WINDOW = 5
"""Steps whose mean length and share of cut answers are compared with those of the first ones."""
SHORTER, LONGER, MORE_CUT = 0.4, 2.5, 0.4
"""Training ends if answers are so many times as long as at first, or if so much more of them is cut at the limit."""


class ToldTeacher(DemonstrationTeacherContextBuilder):  # type: ignore[misc]
    """The teacher's conversation is a column of the row: TRL would put it together from a Python format string."""

    def _compose_teacher_prompt(self, prompt: Any, privileged_context: Any) -> Any:
        return privileged_context


class SelfDistillRun(SeededSamples, SDFTTrainer):  # type: ignore[misc]
    """On-policy self-distillation (arXiv 2601.19897) from a frozen copy of the start."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.teacher_context_builder = ToldTeacher(self)

    def _tokenize_prompts(self, prompts: list[list[dict[str, str]]]) -> list[list[int]]:
        return self.token_ids(prompts)

    def _generate(self, prompt_ids: list[list[int]]) -> tuple[list[list[int]], list[list[int]]]:
        return super()._generate(prompt_ids) if self.sharded else (prompt_ids, self.sampled(prompt_ids))

    def _get_teacher_context_for_self_distillation(self) -> Any:
        return reference_of(self)


class LengthGuard(TrainerCallback):  # type: ignore[misc]
    """Ends a training whose answers collapse: much shorter or longer than at first, or without an end."""

    def __init__(self, warn: Callable[[str], None]) -> None:
        self.warn = warn

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Compare the last steps with the first ones."""
        steps = [e for e in state.log_history if "completions/mean_length" in e]
        if control.should_training_stop or len(steps) < 2 * WINDOW or (problem := collapse(steps)) is None:
            return
        control.should_training_stop, control.should_save = True, False  # resumed from a checkpoint here, it would take one more step
        if state.is_world_process_zero:
            self.warn(f"policy: step {state.global_step}: {problem}; training ends here")


def collapse(steps: list[dict[str, float]]) -> str | None:
    """Return how the last steps' answers differ too much from the first steps'; None if they don't.

    Args:
        steps: logs with `completions/mean_length` and `completions/clipped_ratio`, at least `2 * WINDOW`.
    """
    (first, first_cut), (last, last_cut) = (
        (fmean(e["completions/mean_length"] for e in part), fmean(e["completions/clipped_ratio"] for e in part))
        for part in (steps[:WINDOW], steps[-WINDOW:])
    )
    if not SHORTER * first <= last <= LONGER * first:
        return f"answers have {last:.0f} tokens on average, and had {first:.0f} at first"
    if last_cut > first_cut + MORE_CUT:
        return f"{last_cut:.0%} of the answers are cut at the limit, and {first_cut:.0%} were at first"
    return None
