"""A dataset on the Hub, or a folder that holds one."""

from cai.data.prompt_format import PromptFormat

FORMAT = PromptFormat("hub", on_hub=True)
