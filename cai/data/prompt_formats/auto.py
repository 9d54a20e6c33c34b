"""Any format, row by row: `cai`'s own, or a conversation in one of the usual columns."""

from typing import Any

from cai.data.prompt_format import PromptFormat, read_conversation
from cai.data.prompt_formats.cai import is_cai, read_cai
from cai.recipe import PromptSource
from cai.records import Prompt


def read_any(value: Any, name: str, source: PromptSource) -> Prompt:
    """Read a row in its own format."""
    return read_cai(value, name, source) if is_cai(value) else read_conversation(value, name, source)


FORMAT = PromptFormat("auto", read_any)
