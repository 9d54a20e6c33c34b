"""A CSV file, whatever its name is."""

from cai.data.prompt_format import PromptFormat

FORMAT = PromptFormat("csv", file_kind="csv")
