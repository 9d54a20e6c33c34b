"""A linear probe: it finds what hidden states hold and nothing else, reads its own model only, and isn't measured on its own labels."""

import asyncio
import json
import struct
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cai.core.console import Reporter
from cai.core.workspace import Workspace, init_workspace
from cai.errors import DataError, ModelError, RecipeError
from cai.evaluate.commands import bench_judge, calibrate_judge, fit_judge_probe, labelled_pairs_of
from cai.ids import content_hash
from cai.judge.bench import chosen_protocols
from cai.judge.calibration import POOLING, Calibration
from cai.judge.card import measure_judge
from cai.judge.fitted import fitted_of
from cai.judge.judge import Judge
from cai.judge.probe import NO_PROBE, Probe, check_probe, probe_of, read_probe, weights_path, write_probe
from cai.judge.probing import StatePair, fit_probe, layers_to_try
from cai.judge.protocol import log_odds_of
from cai.models.requests import HiddenState, Reply, Request, StateRequest
from cai.models.scripted import default_script
from cai.recipe import FeedbackConfig, Recipe
from cai.records import EvalResult, Message, Prompt
from cai.session import Session
from cai.workbench.settings import settings, with_float32, with_probe
from cai.workbench.validation import LabelFile, validate_constitution
from tests.judge.judging import CONSTITUTION, TEMPLATES, judge_with, made_probe, pair
from tests.sessions import ScriptedSession

SIZE = 12


def states(n: int, people: Callable[[dict[Any, Any], float], float], seed: int = 0) -> list[StatePair]:
    """Pairs with random states at two layers, and people who answer by the given log-odds of states and length."""
    rng = np.random.default_rng(seed)
    pairs = []
    for i in range(n):
        difference = {
            (layer, pooling): rng.normal(size=SIZE) * 10 ** rng.uniform(-1, 1) for layer in (1, 2) for pooling in ("mean", "last")
        }
        length = float(rng.normal())
        p = 1 / (1 + np.exp(-people(difference, length)))
        pairs.append(StatePair(f"k{i}", f"prompt{i // 2}", length, float(rng.random() < p), difference))
    return pairs


def results(measured: Sequence[EvalResult]) -> dict[tuple[str, str], EvalResult]:
    return {(r.name, r.model): r for r in measured}


def sign_of(where: tuple[int, str]) -> Callable[[dict[Any, Any], float], float]:
    return lambda difference, length: 50.0 * np.sign(difference[where][3])


def test_the_layer_and_pooling_that_hold_the_answer_are_found() -> None:
    for where in ((2, "mean"), (1, "last")):
        fitted = fit_probe(states(160, sign_of(where)), 0)
        assert (fitted.choice.layer, fitted.choice.pooling) == where
        assert np.argmax(np.abs(fitted.weights)) == 3
        accuracy = results(fitted.measured)["accuracy", "probe"]
        assert accuracy.value > 0.8 and accuracy.n == 160 and fitted.warnings == ()


def test_labels_that_states_do_not_predict_give_a_coin_and_a_warning() -> None:
    accuracies = []
    for seed in range(3):
        fitted = fit_probe(states(80, lambda difference, length: 0.0, seed), seed)
        accuracies.append(results(fitted.measured)["accuracy", "probe"].value)
        assert any("not shown to know more than a coin" in w for w in fitted.warnings)
    # The best of 16 candidates on the pairs that it was fitted on would be right far more often.
    assert 0.35 < sum(accuracies) / 3 < 0.62


def test_a_probe_that_length_beats_says_so() -> None:
    fitted = fit_probe(states(160, lambda difference, length: -50 * np.sign(length) + 0 * difference[1, "mean"][0]), 0)
    assert results(fitted.measured)["accuracy", "rule: shorter"].value == 1.0
    assert any(w == "the probe was not shown to beat the best trivial rule (rule: shorter)" for w in fitted.warnings)


def test_telling_a_pair_the_other_way_round_changes_nothing() -> None:
    pairs = states(90, sign_of((1, "mean")))
    turned = [
        replace(p, people=1 - p.people, length=-p.length, difference={k: -v for k, v in p.difference.items()}) if i % 3 else p
        for i, p in enumerate(pairs)
    ]
    one, other = fit_probe(pairs, 0), fit_probe(turned, 0)
    assert one.choice == other.choice and one.weights == pytest.approx(other.weights, rel=1e-3, abs=1e-4)


def test_a_measure_comes_from_pairs_of_prompts_that_the_fit_has_not_seen() -> None:
    """Every prompt has its own direction and two pairs: who has seen one of them knows the other."""
    rng, pairs = np.random.default_rng(1), []
    for i in range(120):
        direction = np.zeros(SIZE * 10)
        direction[i // 2] = 1.0 if (i // 2) % 2 else -1.0
        nothing = rng.normal(size=SIZE * 10) * 1e-3
        pairs.append(StatePair(f"k{i}", f"prompt{i // 2}", 0.0, float((i // 2) % 2), {(1, "mean"): direction + nothing}))
    assert results(fit_probe(pairs, 0).measured)["accuracy", "probe"].value < 0.7


# --- the file ---


def test_a_probe_is_read_as_it_was_written(tmp_path: Path) -> None:
    probe = made_probe(fitted_on=("a",), fitted_prompts=((Message("user", "q"),),), warnings=("w",), weights=(0.1, -3e-7, 1e9))
    write_probe(tmp_path / "p.json", probe)
    assert read_probe(tmp_path / "p.json") == probe and {p.name for p in tmp_path.iterdir()} == {"p.json", "p.safetensors"}
    assert probe.prompts == (Prompt(content_hash((Message("user", "q"),)), "other", (Message("user", "q"),), "probe"),)
    assert json.loads((tmp_path / "p.json").read_text())["pooling"] == "mean"


def test_a_damaged_probe_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    with pytest.raises(DataError, match=r"no such probe. Fit one with: cai judge fit"):
        read_probe(path)
    write_probe(path, made_probe())
    weights = weights_path(path).read_bytes()
    write_probe(tmp_path / "other.json", made_probe(weights=range(1, 9)))
    weights_path(path).write_bytes(weights_path(tmp_path / "other.json").read_bytes())
    with pytest.raises(DataError, match=r"p.safetensors: these are not the weights that p.json was written with"):
        read_probe(path)
    for content in (b"", b"\x00" * 40, weights[:-2]):
        weights_path(path).write_bytes(content)
        with pytest.raises(DataError, match=r"p.safetensors: the weights of p.json can't be read"):
            read_probe(path)
    weights_path(path).unlink()
    with pytest.raises(DataError, match="Keep both files together"):
        read_probe(path)
    path.write_text('{"model": 3}')
    with pytest.raises(DataError, match="not a probe"):
        read_probe(path)


def test_a_probe_of_another_model_is_refused() -> None:
    check_probe(made_probe("a"), "a")
    with pytest.raises(RecipeError, match=r"fitted on another model: on scripted in float32 \(a\); this judge is b.*\nFix: judge with"):
        check_probe(made_probe("a"), "b")
    with pytest.raises(RecipeError, match="it has 8 weights, and the model's hidden states 2 numbers"):
        made_probe().score(HiddenState(struct.pack("<2f", 1, 2), b"", 3))


# --- the protocol ---


def probe_judge(probe: Probe | None = None, script: Callable[[Request], Reply] = default_script, **more: Any) -> Judge:
    plain = judge_with(script, "probe", probe="p.json")
    return Judge(plain.config, CONSTITUTION, plain.model, TEMPLATES, 0, probe=probe or made_probe(plain.model.fingerprint), **more)


def ask(judge: Judge, *pairs: Any) -> list[Any]:
    async def go() -> list[Any]:
        return [await judge(p) for p in pairs]

    return asyncio.run(go())


def test_a_swapped_pair_gets_exactly_the_opposite_label() -> None:
    for number in range(20):
        p = pair(f"one {number}", f"another {number * 7}", number)
        kept, swapped = ask(probe_judge(), p, p.swapped())
        assert kept.failure is None and swapped.p_a == 1 - kept.p_a and kept.p_a != 0.5
        assert ask(probe_judge(), p.swapped())[0].p_a == swapped.p_a, "from a fresh store"


def test_the_label_is_the_difference_of_two_scores_by_hand() -> None:
    def script(request: Request) -> Reply:
        assert isinstance(request, StateRequest) and request.layer == 1
        x = 1.0 if request.text == "GOOD answer." else 0.25
        return HiddenState(struct.pack("<2f", x, 0.0), struct.pack("<2f", 0.0, x), 3)

    for pooling, weights in (("mean", (2.0, 9.0)), ("last", (9.0, 2.0))):
        (found,) = ask(probe_judge(made_probe("scripted:script", weights, pooling=pooling), script), pair())
        assert log_odds_of(found.p_a) == pytest.approx(2 * (1.0 - 0.25))
        assert found.principle_ids == () and found.p_a_first is None


def test_nothing_is_asked_of_a_principle_and_each_text_is_read_once() -> None:
    asked: list[Request] = []

    def script(request: Request) -> Reply:
        asked.append(request)
        return default_script(request)

    (found,) = ask(probe_judge(script=script), pair())
    assert [type(r) for r in asked] == [StateRequest, StateRequest] and len(CONSTITUTION.principles) == 3
    assert (
        found.provenance.template_hash
        != ask(probe_judge(made_probe("scripted:script", layer=2), script), pair())[0].provenance.template_hash
    )


def test_a_probe_is_calibrated_and_its_calibration_is_for_it_alone() -> None:
    probe = made_probe("scripted:default_script")
    fit = Calibration("probe", "ensemble", 1, probe.facts.model, CONSTITUTION.hash, 0.5, pooling=POOLING, probe=probe.hash)
    (plain,), (weighed,) = ask(probe_judge(probe), pair()), ask(probe_judge(probe, calibration=fit), pair())
    assert log_odds_of(weighed.p_a) == pytest.approx(log_odds_of(plain.p_a) / 2, abs=1e-6)
    with pytest.raises(RecipeError, match="- probe: fitted for"):
        probe_judge(replace(probe, facts=replace(probe.facts, n=51)), calibration=fit)


def test_a_judge_without_a_probe_or_with_another_models_is_refused() -> None:
    with pytest.raises(RecipeError, match="cai judge fit"):
        judge_with(default_script, "probe")
    with pytest.raises(RecipeError, match="fitted on another model"):
        probe_judge(made_probe("elsewhere"))
    assert "probe" not in chosen_protocols("all", FeedbackConfig())
    assert "probe" in chosen_protocols("all", FeedbackConfig(probe="p.json"))
    assert chosen_protocols("probe", FeedbackConfig()) == ["probe"]
    assert NO_PROBE.startswith("feedback.probe")


def test_a_text_that_cannot_be_read_is_a_failure_and_no_tie() -> None:
    def script(request: Request) -> Reply:
        from cai.errors import ReplyError

        raise ReplyError("prompt_too_long", "300 tokens")

    (found,) = ask(probe_judge(script=script, probe=made_probe("scripted:script")), pair())
    assert (found.p_a, found.failure) == (None, "prompt_too_long")


# --- fitted, benched and used: on a real, tiny model ---


def labelled(numbers: range, words: Sequence[str] = ("aaaa aa", "zzz zzzz")) -> list[dict[str, str]]:
    """People prefer what is written with a's, whatever its length."""
    rows = []
    for i in numbers:
        good, bad = (f"{word} " * (1 + i // k % 4) + str(i % 10) for word, k in zip(words, (1, 3), strict=True))
        rows.append({"prompt": f"Tell me about the number {i * 7919}, please.", "chosen": good, "rejected": bad})
    return rows


def write(path: Path, rows: Sequence[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> tuple[Workspace, Path, Probe]:
    """A workspace with a probe on the tiny model, fitted to 44 labels."""
    root = tmp_path_factory.mktemp("probe") / "w"
    init_workspace(root)
    files = [write(root / "fit.jsonl", labelled(range(44)))]
    recipe = with_float32(settings(model=str(tiny_model_dir), name="fit"))
    path = root / "probe.json"
    return Workspace(root), path, fit_judge_probe(Session(recipe=recipe, workspace=root), files, path, format="auto", limit=None)


def test_a_probe_is_fitted_on_a_models_own_states(fitted: tuple[Workspace, Path, Probe]) -> None:
    _, path, probe = fitted
    assert read_probe(path) == probe
    facts = probe.facts
    assert (facts.n, facts.layers, facts.precision, len(probe.weights)) == (44, 2, "float32", 64)
    assert facts.layer in layers_to_try(2) and facts.model.startswith("local:")
    assert results(facts.measured)["accuracy", "probe"].value > 0.9 and facts.warnings == ()


def test_a_second_fit_reads_nothing_again(fitted: tuple[Workspace, Path, Probe], tiny_model_dir: Path, tmp_path: Path) -> None:
    workspace, _, probe = fitted
    session = Session(recipe=with_float32(settings(model=str(tiny_model_dir), name="fit")), workspace=workspace)
    again = fit_judge_probe(session, [workspace.root / "fit.jsonl"], tmp_path / "again.json", format="auto", limit=None)
    assert again.weights == probe.weights and again.hash == probe.hash
    assert session.usage.made == 0 and session.usage.reused == 2 * 44 * len(layers_to_try(2))


def test_a_probe_is_benched_on_pairs_that_it_was_not_fitted_on(
    fitted: tuple[Workspace, Path, Probe], tiny_model_dir: Path, tmp_path: Path
) -> None:
    workspace, path, _ = fitted
    said: list[str] = []

    class Told(Reporter):
        def say(self, text: str, style: str = "") -> None:
            said.append(text)

    session = Session(recipe=with_probe(settings(model=str(tiny_model_dir)), path), workspace=workspace, reporter=Told())
    assert session.recipe.judge.precision == "float32"
    rows = [*labelled(range(44)), *labelled(range(44, 64)), *labelled(range(3), ("aa bb", "zz yy"))]
    pairs = labelled_pairs_of(write(tmp_path / "all.jsonl", rows), "auto", None, session)
    assert len(pairs) == 20 and "47 pairs are left out" in said[0]

    async def work(opened: Session) -> Any:
        return await bench_judge(opened, pairs, "probe", CONSTITUTION)

    bench = session.run(work, "bench")
    (found,) = bench.protocols
    assert (found.name, found.n, found.failures, found.position_bias) == ("probe", 20, 0, None)
    assert found.accuracy > 0.9 and found.mass is None
    opened = Session(recipe=with_probe(settings(model=str(tiny_model_dir), protocol="probe"), path), workspace=workspace, reporter=Told())
    validation = opened.run(lambda o: validate_constitution(CONSTITUTION, LabelFile(tmp_path / "all.jsonl"), o), "validate")
    assert (validation.pairs, validation.pooled.n) == (20, 20) and "47 pairs are left out" in said[-1]
    with pytest.raises(DataError, match="the probe was fitted on all of these pairs"):
        labelled_pairs_of(write(tmp_path / "seen.jsonl", labelled(range(44))), "auto", None, session)


def test_a_probe_of_a_model_in_another_precision_is_refused(fitted: tuple[Workspace, Path, Probe], tiny_model_dir: Path) -> None:
    workspace, path, _ = fitted
    recipe = settings(model=f"{tiny_model_dir}")
    recipe = with_probe(recipe, path)
    changed = type(recipe.model)(path=str(tiny_model_dir), precision="bfloat16")
    session = Session(recipe=_with(recipe, changed), workspace=workspace)
    with pytest.raises(RecipeError, match=r"feedback.judge: \{path: .*, precision: float32\}"):
        session.run(_judge, "judge")


async def _judge(opened: Session) -> Judge:
    return opened.judge(CONSTITUTION, protocol="probe")


def _with(recipe: Recipe, model: Any) -> Recipe:
    from msgspec.structs import replace as with_fields

    return with_fields(recipe, model=model)


def test_too_few_labels_and_a_server_are_refused_before_any_call(tmp_path: Path, tiny_model_dir: Path) -> None:
    init_workspace(tmp_path / "w")
    few, enough = write(tmp_path / "few.jsonl", labelled(range(30))), write(tmp_path / "enough.jsonl", labelled(range(44)))
    out = tmp_path / "p.json"
    session = Session(recipe=settings(model=str(tiny_model_dir)), workspace=tmp_path / "w")
    with pytest.raises(DataError, match="30 labelled pairs"):
        fit_judge_probe(session, [few], out, format="auto", limit=None)
    session = Session(recipe=settings(model="http://127.0.0.1:9/v1#m"), workspace=tmp_path / "w")
    with pytest.raises(ModelError, match=r"http://127.0.0.1:9/v1 gives no hidden states"):
        fit_judge_probe(session, [enough], out, format="auto", limit=None)
    with pytest.raises(DataError, match="is an input file"):
        fit_judge_probe(session, [enough], enough, format="auto", limit=None)
    assert not out.exists() and len(enough.read_text().splitlines()) == 44


def test_the_labels_of_a_probe_neither_calibrate_nor_measure_it(tmp_path: Path) -> None:
    root = tmp_path / "w"
    init_workspace(root)
    fit_on, others = write(tmp_path / "fit.jsonl", labelled(range(50))), write(tmp_path / "others.jsonl", labelled(range(50, 100)))
    path = root / "p.json"
    probe = fit_judge_probe(ScriptedSession(workspace=Workspace(root)), [fit_on], path, format="auto", limit=None)
    assert probe.facts.n == 50 and any("not shown to know more than a coin" in w for w in probe.facts.warnings), (
        "a script's states are noise"
    )
    config = FeedbackConfig(protocol="probe", probe="p.json", bench_pairs=str(others))
    assert [one.fitted_on for one in fitted_of(config, root)] == [probe.fitted_on] and len(probe.fitted_on) == 50

    def session() -> ScriptedSession:
        return ScriptedSession(workspace=Workspace(root), recipe=Recipe(name="t", feedback=config))

    with pytest.raises(DataError, match="the probe was fitted on all of these 50 labels"):
        calibrate_judge(session(), [fit_on], CONSTITUTION, tmp_path / "c.json", use_length=False, format="auto", limit=None)
    calibration = calibrate_judge(
        session(), [fit_on, others], CONSTITUTION, tmp_path / "c.json", use_length=False, format="auto", limit=None
    )
    assert len(calibration.fitted_on) == 50 and not {*calibration.fitted_on} & {*probe.fitted_on}
    assert calibration.probe == probe.hash and calibration.method == "temperature"

    def card(pairs: Path) -> Any:
        recipe = Recipe(name="t", feedback=FeedbackConfig(protocol="probe", probe="p.json", bench_pairs=str(pairs)))

        async def work(opened: Session) -> Any:
            return await measure_judge(recipe, root, opened.judge(CONSTITUTION), tmp_path / "b.jsonl", Reporter())

        return ScriptedSession(workspace=Workspace(root), recipe=recipe).ask(work)

    both = write(tmp_path / "both.jsonl", labelled(range(40, 80)))
    assert (card(both).n, card(both).measured) == (30, True)
    assert "on pairs that its probe was not fitted on (10 left out)" in card(both).note
    assert not card(fit_on).measured and "its calibration or probe was fitted on every pair" in card(fit_on).note


def test_a_recipe_finds_its_probe(tmp_path: Path) -> None:
    write_probe(tmp_path / "p.json", made_probe())
    assert probe_of(FeedbackConfig(probe="p.json"), tmp_path) == made_probe()
    assert probe_of(FeedbackConfig(), tmp_path) is None
