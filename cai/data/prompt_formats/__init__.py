"""The formats of prompts: one module each, which declares `FORMAT`. See `cai.core.plugins` for those of other packages."""

from cai.core.plugins import PROMPT_FORMAT, Registry
from cai.data.prompt_format import PromptFormat

PROMPT_FORMATS: Registry[PromptFormat] = Registry(PROMPT_FORMAT, PromptFormat)
