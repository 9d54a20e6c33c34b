"""A PPO training from start to finish on a tiny model: it learns, a kill costs nothing, the watch is heard, two processes are one."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from cai.core.jsonl import read_records
from cai.errors import CaiError, TrainingError
from cai.models.local.generate import complete
from cai.models.local.loading import load_tokenizer
from cai.recipe import MonitorConfig, PolicyConfig, RewardConfig
from cai.records import MonitorPoint
from cai.train.checkpoints import FINISHED, TrainResult, checkpoint_folder
from cai.train.monitor import FRONTIER
from cai.train.rl import ppo
from cai.train.rl.ppo import PPOWatch, train_ppo
from cai.train.running import HISTORY, PolicyJob
from tests.train.builders import adapter, assert_same_weights, model_at, prompt
from tests.train.killing import Killed, kill_at
from tests.train.ppo_settings import PROMPTS, config


class Gold:
    """Stands for a gold reward model: what it says is given, look by look."""

    def __init__(self, *looks: float) -> None:
        self.looks = list(looks)

    def __call__(self, items: Any) -> list[float]:
        mean = self.looks.pop(0)
        return [mean + 0.001 * i for i in range(len(items))]


WATCHED = [prompt(i) for i in range(20, 24)]


def looks(out: Path) -> list[MonitorPoint]:
    return list(read_records(out / FRONTIER, MonitorPoint))


@pytest.fixture
def train(tiny_model_dir: Path, sft: Path, members: tuple[Path, ...]) -> Any:
    """Train on the tiny model."""

    def run(settings: PolicyConfig, out: Path, on_log: Any = None, **changes: Any) -> TrainResult:
        adapter = changes.pop("sft_adapter", sft)
        job = PolicyJob(settings, model_at(tiny_model_dir), adapter, out, 0, on_log, warn=changes.pop("warn", print))
        return train_ppo(job, **{"members": members, "reward": RewardConfig(), "prompts": PROMPTS, **changes})

    return run


def test_it_learns_to_please_its_reward_models(train: Any, tmp_path: Path, sft: Path) -> None:
    result = train(config(8, learning_rate=5e-3, save_steps=100), tmp_path)
    history = [json.loads(line) for line in (tmp_path / HISTORY).read_text().splitlines()]
    scores = [h["objective/scores"] for h in history]
    assert (result.steps, result.examples, len(history)) == (8, 64, 8)
    assert sum(scores[-3:]) / 3 > sum(scores[:3]) / 3 + 2 * history[0]["objective/scores_std"] / 8**0.5
    assert history[0]["objective/kl"] == 0.0
    assert all(h["objective/kl"] > 0.0 for h in history[4:])
    assert adapter(tmp_path).keys() == adapter(sft).keys()
    assert not checkpoint_folder(tmp_path).exists()
    assert "PPO against 2 reward model(s) by mean, reference: the SFT adapter" in (tmp_path / "README.md").read_text()


def test_a_reasoning_has_its_own_limit_also_when_watched(train: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[Any] = []

    def record(model: Any, rows: Any, *rest: Any, **options: Any) -> Any:
        limits.append({r.budget and (r.budget.max_tokens, r.budget.thinking_tokens) for r in rows})
        return complete(model, rows, *rest, **options)

    monkeypatch.setattr("cai.train.rl.rollout.complete", record)
    train(config(1, ppo={"thinking_tokens": 5}), tmp_path / "thinks", watch=PPOWatch(Gold(0.0, 0.0), WATCHED))
    assert limits == [{(8, 5)}] * 3, "a look, a step, a look"
    limits.clear()
    train(config(1), tmp_path / "shares")
    assert limits == [{None}]


def test_a_policy_that_always_thinks_without_a_limit_for_it_is_warned_of(
    tiny_model_dir: Path, members: tuple[Path, ...], tmp_path: Path
) -> None:
    thinker = tmp_path / "thinker"
    shutil.copytree(tiny_model_dir, thinker)
    template = load_tokenizer(model_at(tiny_model_dir)).chat_template
    (thinker / "chat_template.jinja").write_text(template + "{% if add_generation_prompt %}{{ '<think>\n' }}{% endif %}")
    said: list[str] = []
    for tokens in (0, 4):
        settings = config(1, ppo={"thinking_tokens": tokens})
        with contextlib.suppress(CaiError):  # the reward models have another base model
            train_ppo(PolicyJob(settings, model_at(thinker), None, tmp_path / "out", 0, warn=said.append), members, RewardConfig(), PROMPTS)
    assert len(said) == 1 and "share 8 tokens" in said[0] and "policy.ppo.thinking_tokens" in said[0]


def test_kills_between_steps_change_nothing(train: Any, tmp_path: Path) -> None:
    settings = config()
    steps: list[Any] = []
    whole = train(settings, tmp_path / "whole")
    for killed_at in (1, 2, 3):
        with pytest.raises(Killed):
            train(settings, tmp_path / "cut", kill_at(killed_at))
    resumed = train(settings, tmp_path / "cut", lambda *a: steps.append(a[0]))
    assert (resumed.resumed_from, steps) == (2, [3])
    assert resumed.metrics == whole.metrics
    assert (tmp_path / "cut" / HISTORY).read_bytes() == (tmp_path / "whole" / HISTORY).read_bytes()
    assert_same_weights(tmp_path / "whole", tmp_path / "cut")


def test_finished_is_not_done_again_and_another_reward_is_another_training(train: Any, tmp_path: Path, members: tuple[Path, ...]) -> None:
    steps: list[Any] = []
    note = lambda *a: steps.append(a)  # noqa: E731
    first = train(config(1), tmp_path, note)
    assert train(config(1), tmp_path, note) == first
    assert len(steps) == 1
    train(config(1), tmp_path, note, reward=RewardConfig(aggregate="min"))
    train(config(1), tmp_path, note, members=members[:1])
    assert len(steps) == 3


def test_aggregation_decides_what_is_paid(train: Any, tmp_path: Path) -> None:
    logs = [[] for _ in range(2)]  # type: list[list[dict[str, float]]]
    for name, found in zip(("mean", "min"), logs, strict=True):
        train(config(1), tmp_path / name, lambda *a, found=found: found.append(a[2]), reward=RewardConfig(aggregate=name))
    assert logs[1][0]["objective/scores"] < logs[0][0]["objective/scores"]
    assert logs[1][0]["objective/disagreement"] == logs[0][0]["objective/disagreement"] > 0.0


def test_without_an_sft_adapter_the_bare_base_is_the_reference(train: Any, tmp_path: Path) -> None:
    logs: list[dict[str, float]] = []
    train(config(2), tmp_path, lambda *a: logs.append(a[2]), sft_adapter=None)
    assert logs[0]["objective/kl"] == 0.0
    assert logs[1]["objective/kl"] != 0.0
    assert "reference: the base model" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize(
    "changes",
    [{"precision": "bfloat16"}, {"precision": "nf4", "gradient_checkpointing": True, "optimizer": "paged_adamw_8bit"}],
)
def test_low_precision_trains(train: Any, tmp_path: Path, sft: Path, changes: dict[str, Any]) -> None:
    logs: list[dict[str, float]] = []
    train(config(2, **changes), tmp_path, lambda *a: logs.append(a[2]))
    assert abs(logs[0]["objective/kl"]) < 1e-6
    assert logs[1]["objective/kl"] != 0.0
    saved = adapter(tmp_path)
    assert {t.dtype for t in saved.values()} == {torch.float32}
    assert any(not torch.equal(t, adapter(sft)[n]) for n, t in saved.items())


def test_the_watch_looks_keeps_the_best_stops_and_stops_again_after_a_kill(
    train: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(6, learning_rate=3e-3, watch=MonitorConfig(action="stop", every_steps=1, patience=1, min_drop=0.0))
    at: dict[int, dict[str, torch.Tensor]] = {}
    plain, told = ppo.keep_best, []  # type: Any, list[str]

    def noted(watch: Any, out: Path, save: Any) -> None:
        save(tmp_path / "now")
        at[watch.points[-1].step] = adapter(tmp_path / "now")
        plain(watch, out, save)

    def killed(*args: Any) -> None:
        raise Killed

    with monkeypatch.context() as m:
        m.setattr(ppo, "keep_best", noted)
        m.setattr(ppo, "write_records", killed)  # after the last step's checkpoint, before the end
        with pytest.raises(Killed):
            train(settings, tmp_path / "out", warn=told.append, watch=PPOWatch(Gold(1.0, 2.0, -1.0, -2.0, -3.0, -4.0, -5.0), WATCHED))
    result = train(settings, tmp_path / "out", watch=PPOWatch(Gold(), WATCHED))
    points = looks(tmp_path / "out")
    assert [p.step for p in points] == list(range(result.steps + 1))
    assert result.resumed_from == result.steps < 6, "gold fell while the proxy rose"
    assert told == [
        f"step {result.steps}: the policy is over-optimized: gold reward has fallen since step 0 while the "
        "reward that the policy is trained on has risen; training stops here"
    ]
    assert points[0].kl == 0.0
    assert points[-1].disagreement is not None
    saved = adapter(tmp_path / "out")
    assert all(torch.equal(saved[n], t) for n, t in at[1].items()), "the best step's weights"
    assert any(not torch.equal(saved[n], t) for n, t in at[result.steps].items())
    assert "the weights of step 1, the best by gold reward" in (tmp_path / "out" / "README.md").read_text()


def test_a_gold_reward_model_is_one_more_adapter(train: Any, tmp_path: Path, members: tuple[Path, ...], tiny_model_dir: Path) -> None:
    train(config(1), tmp_path, watch=PPOWatch(members[1], WATCHED), members=members[:1])
    first, last = looks(tmp_path)
    assert (first.step, last.step, first.n, first.disagreement) == (0, 1, 4, None)
    assert first.gold_scores != pytest.approx(first.proxy_scores, abs=1e-3)
    assert last.kl != 0.0


def test_a_diverging_training_is_not_finished(train: Any, tmp_path: Path, sft: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in sft.iterdir():
        if file.is_file():
            (broken / file.name).write_bytes(file.read_bytes())
    save_file({name: torch.full_like(t, float("nan")) for name, t in adapter(sft).items()}, broken / "adapter_model.safetensors")
    with pytest.raises(TrainingError, match="training diverged: the policy's log-probabilities are not all finite"):
        train(config(1), tmp_path / "policy", sft_adapter=broken)
    assert not (tmp_path / "policy" / FINISHED).exists()


def test_prompts_that_leave_no_room_are_counted_and_having_none_left_is_an_error(train: Any, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="none of 6 has at most 12 tokens"):
        train(config(1, max_length=20), tmp_path)


TWO = """
import json, os, sys, torch
sys.path.insert(0, os.getcwd())
torch.set_num_threads(1)
from pathlib import Path
from cai.recipe import RewardConfig
from cai.train.rl.ppo import train_ppo
from cai.train.running import PolicyJob
from tests.train.builders import model_at
from tests.train.ppo_settings import PROMPTS, config
model, sft, out, *members = map(Path, sys.argv[1:])
settings = config(2, batch_size=2)
train_ppo(PolicyJob(settings, model_at(model), sft, out, 0), members, RewardConfig(), PROMPTS)
"""


@pytest.mark.slow
def test_two_processes_give_what_one_gives(train: Any, tiny_model_dir: Path, sft: Path, members: tuple[Path, ...], tmp_path: Path) -> None:
    train(config(2, batch_size=4), tmp_path / "one")
    script = tmp_path / "two.py"
    script.write_text(TWO)
    environment = {**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone", str(script)]
    given = [str(p) for p in (tiny_model_dir, sft, tmp_path / "two", *members)]
    done = subprocess.run([*command, *given], capture_output=True, text=True, env=environment, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = ([json.loads(line) for line in (tmp_path / n / HISTORY).read_text().splitlines()] for n in ("one", "two"))
    assert len(one) == len(two) == 2
    for a, b in zip(one, two, strict=True):
        assert b == pytest.approx(a, rel=1e-3, abs=1e-4)
    assert_same_weights(tmp_path / "one", tmp_path / "two", rtol=1e-3, atol=5e-5)
