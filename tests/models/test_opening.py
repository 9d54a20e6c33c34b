"""From a spec to an engine."""

import asyncio
from pathlib import Path

import pytest

from cai.errors import ModelError
from cai.models.base import TextModel
from cai.models.local.engine import LocalEngine
from cai.models.opening import LazyEngine, open_engine
from cai.models.requests import Sampling
from cai.models.scripted import ScriptedEngine
from cai.models.store import CallStore
from cai.pipeline.setup_check import spec_fingerprint
from cai.recipe import ModelSpec
from cai.records import Message


def test_a_script_opens_under_its_name() -> None:
    engine = asyncio.run(open_engine(ModelSpec(path="scripted", name="other")))
    assert isinstance(engine, ScriptedEngine) and engine.fingerprint == "scripted:other"


def test_a_model_that_is_not_there_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        asyncio.run(open_engine(ModelSpec(path=str(tmp_path / "none"))))


def test_a_local_model_is_loaded_once_at_its_first_request(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[str] = []
    real = LocalEngine.load
    monkeypatch.setattr(LocalEngine, "load", lambda spec: (loads.append(spec.path), real(spec))[1])
    spec = ModelSpec(path=str(tiny_model_dir))

    async def ask() -> None:
        engine = await open_engine(spec)
        assert isinstance(engine, LazyEngine) and engine.fingerprint == spec_fingerprint(spec) and loads == []
        with CallStore(None) as store:
            model = TextModel(engine, store, "test")
            questions = [(Message("user", text),) for text in ("a", "b", "c")]
            await asyncio.gather(*(model.complete(q, Sampling(max_tokens=2), 0) for q in questions))
            assert loads == [str(tiny_model_dir)]
            again = TextModel(engine, store, "again")
            await again.complete(questions[0], Sampling(max_tokens=2), 0)
            assert again.usage.reused == 1 and again.usage.made == 0
        await engine.close()
        await engine.close()  # twice is no harm

    asyncio.run(ask())
