"""Trainings that are killed at a step."""

from typing import Any


class Killed(Exception):
    """Stands for the process's end."""


def kill_at(step: int) -> Any:
    """Return an `on_log` that ends the training at a step."""

    def note(at: int, total: int, metrics: dict[str, float]) -> None:
        if at == step:
            raise Killed

    return note
