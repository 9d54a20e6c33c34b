"""Checkpoints of a PPO training: trained weights, optimizer state, and the log so far.

There is no random state: every draw has its own seed, from the training's seed and the draw's purpose. The learning rate is a function of
the step.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from cai.core.jsonl import write_text
from cai.train.checkpoints import checkpoint_folder, mark_complete, prune_checkpoints

if TYPE_CHECKING:
    from cai.train.rl.shared_base import SharedBase

WEIGHTS, OPTIMIZER, STATE = "trained.safetensors", "optimizer.pt", "state.json"
KEPT = 2
"""Number of checkpoints to keep. The last one may be incomplete after a kill."""


class PPOState(msgspec.Struct):
    """State of a training between two steps."""

    step: int
    """Number of PPO steps done."""
    history: list[dict[str, float]]
    """Metrics of each step."""


def save_state(shared: "SharedBase", optimizer: Any, state: PPOState, out: Path, fingerprint: str) -> None:
    """Write a checkpoint, mark it as complete, and remove all but the last two."""
    import torch
    from safetensors.torch import save_file

    folder = checkpoint_folder(out) / f"checkpoint-{state.step}"
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: p.detach().cpu().contiguous() for name, p in shared.trained().items()}, folder / WEIGHTS)
    torch.save(optimizer.state_dict(), folder / OPTIMIZER)
    write_text(folder / STATE, msgspec.json.encode(state).decode())
    mark_complete(folder, fingerprint)
    prune_checkpoints(out, KEPT)


def load_state(shared: "SharedBase", optimizer: Any, folder: Path) -> PPOState:
    """Load a checkpoint into the shared base and the optimizer, and return its state. Only tensors and numbers are read."""
    import torch
    from safetensors.torch import load_file

    weights = load_file(folder / WEIGHTS)
    with torch.no_grad():
        for name, parameter in shared.trained().items():
            parameter.copy_(weights[name])
    optimizer.load_state_dict(torch.load(folder / OPTIMIZER, weights_only=True, map_location=shared.device))
    return msgspec.json.decode((folder / STATE).read_bytes(), type=PPOState)
