"""The judging protocols: one module each, which declares `PROTOCOL`. See `cai.core.plugins` for those of other packages."""

from cai.core.plugins import PROTOCOL, Registry
from cai.judge.protocol import Protocol
from cai.recipe import FeedbackConfig

PROTOCOLS: Registry[Protocol] = Registry(PROTOCOL, Protocol)


def asking_protocols(config: FeedbackConfig | None = None) -> tuple[str, ...]:
    """Return the names of the protocols that ask a model, and can with these settings (None: the defaults)."""
    config = config or FeedbackConfig()
    return tuple(p.name for p in PROTOCOLS.all() if p.asks_model and not p.problems(config.by(p.name)))
