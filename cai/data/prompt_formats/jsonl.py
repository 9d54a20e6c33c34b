"""Rows with a prompt or conversation in a column."""

from cai.data.prompt_format import PromptFormat

FORMAT = PromptFormat("jsonl")
