"""hh-rlhf and other preferences: the prompt is that of the text in `chosen`."""

from functools import partial

from cai.data.prompt_format import PromptFormat, read_conversation

FORMAT = PromptFormat("hh", partial(read_conversation, columns=("chosen",)))
