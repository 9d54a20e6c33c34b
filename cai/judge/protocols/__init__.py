"""The judging protocols: one module each, which declares `PROTOCOL`. See `cai.core.plugins` for those of other packages."""

from cai.core.plugins import PROTOCOL, Registry
from cai.judge.protocol import Protocol

PROTOCOLS: Registry[Protocol] = Registry(PROTOCOL, Protocol)
