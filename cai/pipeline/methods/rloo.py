"""RLOO (arXiv 2402.14740): as GRPO, but with the KL to the reference in the reward."""

from dataclasses import replace
from functools import partial
from typing import Any

from cai.pipeline.methods import grpo
from cai.pipeline.training import train_on_rewards
from cai.train.rl.online_method import OnlineMethod


def rloo_classes() -> tuple[Any, Any]:
    """Return the trainer and the class of its arguments."""
    from trl import RLOOConfig

    from cai.train.rl.trainers import RLOORun

    return RLOORun, RLOOConfig


RLOO = OnlineMethod("RLOO, the KL to the reference in the reward", beta=0.05, classes=rloo_classes)  # β as in TRL
"""REINFORCE leave-one-out, for `train_online`."""
METHOD = replace(grpo.METHOD, name="rloo", run=partial(train_on_rewards, method=RLOO))
