"""The audit's checks: one module each, which declares `CHECKS`. See `cai.core.plugins` for those of other packages."""

from cai.core.plugins import AUDIT_CHECK, Registry
from cai.evaluate.audit.check import Checks

CHECKS: Registry[Checks] = Registry(AUDIT_CHECK, Checks)
