"""The reward terms: one module each, which declares `TERM`. See `cai.core.plugins` for those of other packages."""

from cai.core.plugins import REWARD_TERM, Registry
from cai.train.rl.term import Term

TERMS: Registry[Term] = Registry(REWARD_TERM, Term)
