"""Puts the turns of a conversation as a chat template takes them: without system turns, or with users and assistants alternating."""

from collections.abc import Iterator, Sequence

from cai.records import Message


def without_system(messages: Sequence[Message]) -> list[Message] | None:
    """Return a conversation with each system turn in the next user turn, or at the end of the last; None if that can't be done.

    >>> without_system([Message("system", "Be brief."), Message("user", "Hi"), Message("system", "Now shout.")])
    [Message(role='user', content='Be brief.\\n\\nHi\\n\\nNow shout.')]
    """
    rest: list[Message] = []
    told: list[str] = []
    last: int | None = None
    for message in messages:
        if message.role == "system":
            told.append(message.content)
            continue
        if message.role == "user":
            last, message, told = len(rest), Message("user", "\n\n".join([*told, message.content])), []
        rest.append(message)
    if last is None or len(rest) == len(messages):
        return None
    rest[last] = Message("user", "\n\n".join([rest[last].content, *told]))
    return rest


def alternating(messages: Sequence[Message]) -> list[Message]:
    """Return a conversation with consecutive turns of one role as one turn.

    >>> alternating([Message("user", "One."), Message("user", "Two.")])
    [Message(role='user', content='One.\\n\\nTwo.')]
    """
    joined: list[Message] = []
    for message in messages:
        if joined and joined[-1].role == message.role:
            joined[-1] = Message(message.role, f"{joined[-1].content}\n\n{message.content}")
        else:
            joined.append(message)
    return joined


def join_systems(messages: Sequence[Message]) -> Iterator[Message]:
    """Join consecutive system turns: most chat formats take one."""
    held: Message | None = None
    for message in messages:
        if held is not None and held.role == message.role == "system":
            held = Message("system", f"{held.content}\n\n{message.content}")
            continue
        if held is not None:
            yield held
        held = message
    if held is not None:
        yield held
