"""`cai models check`: what a model or server is, which judging protocols it can serve, and what is degraded and why, in its own words.

Nothing is assumed from a server's name: a few short requests are made, as a run makes them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from cai.errors import ModelError, ReplyError
from cai.judge.choices import SMALL_MASS
from cai.judge.protocol import ProtocolContext
from cai.judge.protocols import PROTOCOLS
from cai.models.base import UNFINISHED, Engine
from cai.models.requests import ChoicesRequest, CompleteRequest, Completion, Reply, Request, Sampling, ScoreRequest, StateRequest
from cai.recipe import ModelSpec
from cai.records import Message, Principle, Prompt, Provenance, ResponsePair
from cai.session import Session, with_protocol

State = Literal["yes", "degraded", "no"]
_ASKED = (Message("user", "What is the capital of France?"),)
_OPEN = (Message("user", "Write one sentence about the sea."),)
"""Has many answers, so that seeds can differ."""
_PRINCIPLE = Principle("kind", "The response is kind to the person who asks.")
_SHORT = Sampling(24)
_THINKING = Sampling(24, thinking_tokens=1000)
"""For a model that spends a short limit on its reasoning. Others never get it: a server has one limit, which they would fill."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Whether a model can do one thing; `why` says what is missing, mostly in the server's words."""

    what: str
    state: State
    why: str = ""


@dataclass(frozen=True, slots=True)
class ModelCheck:
    """What `check_model` found."""

    model: str
    kind: str
    """What answers: a kind of server, or this machine."""
    abilities: tuple[Finding, ...]
    protocols: tuple[Finding, ...]
    """One for each judging protocol that asks a model."""


async def check_model(session: Session, spec: ModelSpec) -> ModelCheck:
    """Ask a model for everything that a run may want of it."""
    model = await session.open_model(spec)
    engine = model.engine
    samples, sampling = await _samples(engine)
    findings = [_seeds(samples)]
    told = await _asked(engine, CompleteRequest((Message("system", "Be brief."), *_ASKED), sampling, 1))
    begun = await _asked(engine, CompleteRequest(_ASKED, sampling, 1, "The capital of France is"))
    chosen = await _asked(engine, ChoicesRequest((Message("user", "Is water wet? Answer Yes or No."),), ("Yes", "No")))
    scored = await _asked(engine, ScoreRequest(_ASKED, "Paris."))
    system, prefill, kind = await _ways(spec, engine)
    listed = _listing(engine, chosen)
    findings += [
        _finding("system turn", told, engine, system),
        _finding("continues a begun answer", begun, engine, prefill),
        _finding("log-probabilities of choices", chosen, engine, listed),
        _finding("log-probability of a given text", scored, engine),
    ]
    if sampling is _THINKING or any(isinstance(sample, Completion) and sample.reasoning for sample in samples):
        findings.append(
            Finding("answers at once", "degraded", "it reasons first: give it sampling.thinking_tokens, or model.thinking: false")
        )
    prompt = Prompt("check", "helpful", _ASKED, "check")
    by_hand = Provenance("", (), "", 0, "")
    pair = ResponsePair(prompt, "It is Paris. Enjoy your trip!", "Look it up yourself.", "sampled", by_hand)
    protocols = []
    for name in PROTOCOLS.names():
        protocol, config = PROTOCOLS.get(name), with_protocol(session.recipe, name).feedback
        if not protocol.asks_model:
            continue
        if protocol.reads_states:
            states = await _asked(engine, StateRequest(_ASKED, "Paris.", 1))
            protocols.append(_finding(name, states, engine, "needs a probe, which `cai judge fit` fits to human labels"))
            continue
        try:
            opinion = await protocol.ask(pair, _PRINCIPLE, ProtocolContext(model, session.judge_templates, config, 0))
        except ModelError as e:
            protocols.append(_finding(name, e, engine))
            continue
        why = listed if opinion.mass is not None else ""
        if opinion.mass is not None and opinion.mass < SMALL_MASS:
            why = f"its choices hold {opinion.mass:.1%} of the probability: it would hardly write them"
        protocols.append(Finding(name, "degraded" if why else "yes", why))
    return ModelCheck(engine.name, kind, tuple(findings), tuple(protocols))


async def _asked(engine: Engine, request: Request) -> Reply | ModelError:
    try:
        return await engine.submit(request)
    except ModelError as e:
        return e


def _finding(what: str, reply: Reply | ModelError, engine: Engine, degraded: str = "") -> Finding:
    if isinstance(reply, ModelError):
        return Finding(what, "no", str(reply).removeprefix(engine.name).strip())
    return Finding(what, "degraded" if degraded else "yes", degraded)


async def _samples(engine: Engine) -> tuple[list[Reply | ModelError], Sampling]:
    """Return answers of seeds 1, 1, 2 and 3, and the limit that they took.

    Raises `ModelError` if none has a text; a single one may be empty by chance.
    """
    failed: list[ModelError] = []
    for sampling in (_SHORT, _THINKING):
        samples = [await _asked(engine, CompleteRequest(_OPEN, sampling, 1))]
        if not isinstance(samples[0], ModelError) or isinstance(samples[0], ReplyError):
            samples += [await _asked(engine, CompleteRequest(_OPEN, sampling, seed)) for seed in (1, 2, 3)]
        failed = [sample for sample in samples if isinstance(sample, ModelError)]
        if len(failed) < len(samples):
            return samples, sampling
        if not any(isinstance(e, ReplyError) and e.detail == UNFINISHED for e in failed):
            break
    if isinstance(failed[0], ReplyError) and failed[0].reason == "empty_reply":
        raise ModelError(f"{engine.name}: {failed[0].detail}")
    raise failed[0]


def _seeds(samples: Sequence[Reply | ModelError]) -> Finding:
    what = "repeats an answer by its seed"
    texts = [s.text if isinstance(s, Completion) else str(s) for s in samples]
    if texts[0] != texts[1]:
        return Finding(what, "degraded", "one seed gave two answers: only calls in the store repeat")
    if len(set(texts)) == 1:
        return Finding(what, "degraded", "three seeds gave one answer at temperature 1: pairs of responses may be equal")
    return Finding(what, "yes")


async def _ways(spec: ModelSpec, engine: Engine) -> tuple[str, str, str]:
    """Return what is degraded about system turns and begun answers, and what answers."""
    if not spec.is_server:
        if spec.path == "scripted":
            return "", "", "a script"
        from cai.models.local.engine import template_limits
        from cai.models.local.loading import load_tokenizer

        limits = template_limits(spec.path, load_tokenizer(spec))
        return "; ".join(limit for limit in limits if "system" in limit), "", "; ".join(["this machine", *limits])
    from cai.models.server.engine import ServerEngine

    assert isinstance(engine, ServerEngine)
    can, said = engine.capabilities, engine.capabilities.refusals
    system = "" if can.system else f"goes into the next user turn{_words(said.get('system'))}"
    prefill = "" if can.continues else f"is told the opening in words{_words(said.get('continues'))}"
    notes = [engine.kind]
    notes += [f"the limit is sent as {can.limit}"] if can.limit != "max_tokens" else []
    notes += [f"without {', '.join(sorted(can.without))}, which it refuses"] if can.without else []
    notes += ["consecutive turns of one role are joined"] if can.joins else []
    return system, prefill, "; ".join(notes)


def _words(refusal: str | None) -> str:
    return f" (it says: {refusal})" if refusal else ""


def _listing(engine: Engine, reply: Reply | ModelError) -> str:
    """Say how choices are read where they are not exact."""
    from cai.models.requests import ChoiceLogprobs

    if not isinstance(reply, ChoiceLogprobs) or not reply.every_form:
        return ""
    return f"only single tokens among the {getattr(getattr(engine, 'capabilities', None), 'top', 20)} likeliest"
