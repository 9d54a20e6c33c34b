"""Open an engine for a `ModelSpec`. Local weights are loaded at the first request."""

import asyncio
import ctypes
import gc
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import TYPE_CHECKING

from cai.models.base import Engine, OnText
from cai.models.requests import CompleteRequest, Completion, Reply, Request
from cai.models.scripted import ScriptedEngine
from cai.recipe import ModelSpec

if TYPE_CHECKING:
    from cai.models.local.engine import LocalEngine

Loading = Callable[[str], AbstractContextManager[None]]


class LazyEngine:
    """A local model that is loaded at its first request. A run whose calls are all in the store never loads it.

    Args:
        loading: called with the model's name; the weights are loaded inside the context that it returns.
    """

    def __init__(self, spec: ModelSpec, loading: Loading = lambda name: nullcontext()) -> None:
        from cai.models.local.fingerprint import model_fingerprint

        self.spec = spec
        self.loading = loading
        self.name = spec.path if spec.adapter is None else f"{spec.path}+{spec.adapter}"
        self.fingerprint = model_fingerprint(spec)
        self._engine: LocalEngine | None = None
        self._loading: asyncio.Lock | None = None

    @cached_property
    def layers(self) -> int:
        """Number of the model's layers."""
        from cai.models.local.loading import count_layers

        return count_layers(self.spec)

    async def submit(self, request: Request) -> Reply:
        """Answer one request, after loading the model if this is the first one."""
        return await (await self.loaded()).submit(request)

    async def stream(self, request: CompleteRequest, on_text: OnText) -> Completion:
        """Answer one request piece by piece."""
        engine = await self.loaded()
        return await engine.stream(request, on_text)

    async def loaded(self) -> "LocalEngine":
        """Return the engine; load it first if nothing has."""
        if self._engine is None:
            if self._loading is None:
                self._loading = asyncio.Lock()
            async with self._loading:
                if self._engine is None:
                    from cai.models.local.engine import LocalEngine

                    with self.loading(self.name):
                        self._engine = LocalEngine.load(self.spec)
        return self._engine

    async def finish(self) -> None:
        """Finish the running batch, if the model was loaded."""
        if self._engine is not None:
            await self._engine.finish()

    async def close(self) -> None:
        """Release the model, if it was loaded."""
        if self._engine is not None:
            await self._engine.close()
            self._engine = None


async def open_engine(spec: ModelSpec, loading: Loading = lambda name: nullcontext()) -> Engine:
    """Return the engine for a spec: `scripted`, a server URL, or a local model."""
    if spec.path == "scripted":
        return ScriptedEngine(name=spec.name or "scripted")
    if spec.is_server:
        from cai.models.server.engine import ServerEngine

        return await ServerEngine.connect(spec)
    return LazyEngine(spec, loading)


def release_memory() -> None:
    """Free unused memory before the next model is loaded.

    Trainers and PEFT models contain reference cycles, which only the garbage collector frees, and glibc keeps some tenths of a GiB of freed
    blocks.
    """
    gc.collect()
    if sys.platform == "linux":
        try:
            ctypes.CDLL(None).malloc_trim(0)
        except (AttributeError, OSError):  # another C library
            return
