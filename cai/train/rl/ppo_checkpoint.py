"""A PPO training on disk between two steps: trained weights, optimizer, KL coefficient, and the log so far.

There is no random state to keep: every draw has a seed of its own, from the training's seed and what it is for. The learning rate is a
function of the step.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from cai.core.jsonl import write_text
from cai.train.checkpoints import checkpoint_folder, mark_whole, prune_checkpoints

if TYPE_CHECKING:
    from cai.train.rl.shared_base import SharedBase

WEIGHTS, OPTIMIZER, STATE = "trained.safetensors", "optimizer.pt", "state.json"
KEPT = 2
"""Checkpoints to keep: one may be torn."""


class PPOState(msgspec.Struct):
    """Where a training is."""

    step: int
    """PPO steps done."""
    kl_coef: float
    """For the next step."""
    history: list[dict[str, float]]
    """What each step measured."""


def save_state(shared: "SharedBase", optimizer: Any, state: PPOState, out: Path, fingerprint: str) -> None:
    """Write a checkpoint; it counts once it is whole. Older ones than the last two go."""
    import torch
    from safetensors.torch import save_file

    folder = checkpoint_folder(out) / f"checkpoint-{state.step}"
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: p.detach().cpu().contiguous() for name, p in shared.trained().items()}, folder / WEIGHTS)
    torch.save(optimizer.state_dict(), folder / OPTIMIZER)
    write_text(folder / STATE, msgspec.json.encode(state).decode())
    mark_whole(folder, fingerprint)
    prune_checkpoints(out, KEPT)


def load_state(shared: "SharedBase", optimizer: Any, folder: Path) -> PPOState:
    """Put a whole checkpoint back into the shared base and the optimizer; return where it was. Only tensors and numbers are read."""
    import torch
    from safetensors.torch import load_file

    weights = load_file(folder / WEIGHTS)
    with torch.no_grad():
        for name, parameter in shared.trained().items():
            parameter.copy_(weights[name])
    optimizer.load_state_dict(torch.load(folder / OPTIMIZER, weights_only=True, map_location=shared.device))
    return msgspec.json.decode((folder / STATE).read_bytes(), type=PPOState)
