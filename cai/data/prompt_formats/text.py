"""A text file, whatever its name is: each line is a prompt, also one that looks like a transcript."""

from typing import Any

from cai.data.prompt_format import PromptFormat, prompt_of, read_conversation
from cai.recipe import PromptSource
from cai.records import Prompt


def read_line(value: Any, name: str, source: PromptSource) -> Prompt:
    """Read a line as the user's turn."""
    if isinstance(value, str):
        return prompt_of([{"role": "user", "content": value}], {}, name, source)
    return read_conversation(value, name, source)


FORMAT = PromptFormat("text", read_line, "text")
