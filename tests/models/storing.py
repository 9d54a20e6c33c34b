"""Puts calls into a store, for the tests in this folder."""

import asyncio
from pathlib import Path
from typing import Any

from cai.ids import content_hash
from cai.models.requests import Completion
from cai.models.store import CallStore


def key(i: object) -> str:
    return content_hash(i, length=64)


def put(store: CallStore, i: int, text: str = "text", stage: str = "respond") -> Any:
    return store.put(key(i), stage, "model", {"i": i}, Completion(f"{text} {i}", False, 3, 4), 0.5)


def fill(path: Path, count: int, text: str = "text") -> None:
    async def run(store: CallStore) -> None:
        await asyncio.gather(*(put(store, i, text) for i in range(count)))

    with CallStore(path) as store:
        asyncio.run(run(store))


def opened(path: Path) -> None:
    with CallStore(path) as store:
        for i in range(200):
            store.get(key(i), Completion)
        len(store)
