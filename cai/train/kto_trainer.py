"""TRL's KTO trainer with soft labels and example weights.

Import this module inside functions only: it loads torch and TRL.
"""

from typing import Any

import torch
import trl.trainer.utils as trl_utils
from trl import KTOTrainer
from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference

from cai.train.encode import IGNORED
from cai.train.losses import kto_loss, weighted_mean
from cai.train.trainers import CountsExamples, check_reference, completion_positions_only, label_tensors, reference_of


class SoftKTOCollator(DataCollatorForUnpairedPreference):  # type: ignore[misc]
    """Pads completions, and each prompt with another prompt's completion for the KL estimate. Adds the labels to the batch."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Return TRL's batch, with the labels `p_desirable` and `weight` (B,)."""
        sided = [{**e, "label": e["p_desirable"] > 0.5} for e in examples]
        return {**super().torch_call(sided), **label_tensors(examples)}


class SoftKTORun(CountsExamples, KTOTrainer):  # type: ignore[misc]
    """TRL's KTO with soft labels and weights."""

    def __init__(self, model: Any, **kwargs: Any) -> None:
        super().__init__(model=model, **kwargs)
        trl_utils.add_fused_lm_head(model.get_base_model(), outputs=("log_probs",))

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        """Return `kto_loss` of a batch; log the KL estimate, the margin of implicit rewards, and accuracy against the labels."""
        p_B, weight_B = inputs["p_desirable"], inputs["weight"]
        with completion_positions_only():
            logps_B = self._logps(model, inputs, "")
            with torch.no_grad():
                kl_B = self._logps(self.model, inputs, "KL_")
            with reference_of(self):
                reference_logps_B = self._logps(self.model, inputs, "")
                kl_B = kl_B - self._logps(self.model, inputs, "KL_")
        logratio_B = logps_B - reference_logps_B
        kl = self.accelerator.gather(kl_B).mean().clamp(min=0)
        if self.state.global_step == 0:
            check_reference(self.beta * logratio_B)
        sign_B = 2.0 * p_B - 1.0  # from −1, undesirable, to 1, desirable
        self.log_means(
            kl=kl.expand(len(p_B)),
            rewards__margins=2.0 * self.beta * sign_B * logratio_B,
            rewards__accuracies=(sign_B * logratio_B > 0),
        )
        loss = weighted_mean(kto_loss(logratio_B, kl, p_B, beta=self.beta), weight_B, self.count(num_items_in_batch))
        return (loss, None) if return_outputs else loss

    def _logps(self, model: Any, inputs: dict[str, Any], which: str) -> torch.Tensor:
        """Return log-probabilities of the rows' own completions (`""`) or the mismatched ones (`"KL_"`), summed over tokens, (B,)."""
        tokens_BT, mask_BT = inputs[f"{which}input_ids"], inputs[f"{which}attention_mask"]
        labels_BT = tokens_BT.masked_fill(inputs[f"{which}completion_mask"] == 0, IGNORED)
        outputs = model(input_ids=tokens_BT, attention_mask=mask_BT, labels=labels_BT, fused_lm_head=True, use_cache=False)
        return outputs.log_probs.float().sum(dim=1)  # type: ignore[no-any-return]
