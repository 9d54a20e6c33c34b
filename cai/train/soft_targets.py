"""SFT with soft targets (`SFTConfig.soft_targets`): the batches, and TRL's trainer with a teacher.

Import this module inside functions only: it loads torch and TRL.
"""

from typing import Any

import torch

from cai.train.encode import IGNORED
from cai.train.losses import soft_target_loss
from cai.train.trainers import SFTRun, reference_of


class SoftTargetCollator:
    """Pads rows on the left, so that all completions end at the last position and the LM head runs on those positions alone."""

    def __init__(self, pad_id: int) -> None:
        self.pad_id = pad_id

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Return a batch.

        `input_ids`, `attention_mask`, `labels` (B, T): the rows. `forced` (B, T): completion tokens without a teacher. `told_ids`,
        `told_mask` (P, S): the teacher's prompts, each with the tokens of one part. `parts` (P, 3): each part's row, and the range of its
        tokens that the teacher predicts, counted from the end of the row. Without any part, the teacher reads a row for nothing: of sharded
        weights, all processes must run it.
        """
        rows = [e["input_ids"] for e in examples]
        told = [part["ids"] for e in examples for part in e["told"]] or rows[:1]
        ranges = [(row, part["start"], part["end"]) for row, e in enumerate(examples) for part in e["told"]]
        batch = {"labels": _padded([e["labels"] for e in examples], IGNORED), "forced": _padded([e["forced"] for e in examples], 1).bool()}
        batch |= {"input_ids": _padded(rows, self.pad_id), "attention_mask": _padded([[1] * len(row) for row in rows], 0)}
        batch |= {"told_ids": _padded(told, self.pad_id), "told_mask": _padded([[1] * len(ids) for ids in told], 0)}
        return {**batch, "parts": torch.tensor(ranges, dtype=torch.long).reshape(-1, 3)}


def _padded(rows: list[list[int]], filler: int) -> torch.Tensor:
    width = max(map(len, rows))
    return torch.tensor([[filler] * (width - len(row)) + row for row in rows])


class SoftTargetSFT(SFTRun):
    """TRL's SFT trainer with the teacher's distribution as target: the start model with the principles in its context."""

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        """Return `soft_target_loss`, averaged over the tokens of the optimizer step."""
        labels_BT = inputs["labels"]
        kept = int((labels_BT != IGNORED).sum(-1).max())
        labels_BN, forced_BN = labels_BT[:, -kept:], inputs["forced"][:, -kept:]
        student_BNV = _last_logits(model, inputs["input_ids"], inputs["attention_mask"], kept)
        row_T, at_T = (labels_BN != IGNORED).nonzero(as_tuple=True)
        forced_T = forced_BN[row_T, at_T]
        logits_TV = student_BNV[row_T, at_T]
        parts = inputs["parts"].tolist()
        longest = max((start - end for _, start, end in parts), default=1)
        with reference_of(self):
            told_PNV = _last_logits(self.model, inputs["told_ids"], inputs["told_mask"], longest)
        teacher_TV = logits_TV.detach().clone()  # where no part has a token, it is forced
        where_BN = torch.full(labels_BN.shape, -1, device=labels_BN.device)
        where_BN[row_T, at_T] = torch.arange(len(row_T), device=row_T.device)
        for part, (row, start, end) in enumerate(parts):
            teacher_TV[where_BN[row, kept - start : kept - end]] = told_PNV[part, longest - (start - end) :].to(teacher_TV.dtype)
        loss_T = soft_target_loss(logits_TV, teacher_TV, labels_BN[row_T, at_T], forced_T)
        self._metrics["train" if model.training else "eval"]["kl"].append(loss_T[~forced_T].mean().item() if (~forced_T).any() else 0.0)
        loss = loss_T.sum() / (len(loss_T) if num_items_in_batch is None else num_items_in_batch / self.accelerator.num_processes)
        return (loss, None) if return_outputs else loss


def _last_logits(model: Any, ids_BT: torch.Tensor, mask_BT: torch.Tensor, count: int) -> torch.Tensor:
    """Return the logits that predict the last `count` tokens of each row, (B, count, V)."""
    positions_BT = (mask_BT.cumsum(-1) - 1).clamp(min=0)
    outputs = model(input_ids=ids_BT, attention_mask=mask_BT, position_ids=positions_BT, logits_to_keep=count + 1, use_cache=False)
    logits_BNV: torch.Tensor = outputs.logits[:, :-1]
    return logits_BNV
