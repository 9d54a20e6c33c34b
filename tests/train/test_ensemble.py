"""Reward members on one shared base: each scores as it does alone, and their scores become one."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from cai.errors import ModelError
from cai.records import RewardScore
from cai.train.reward.ensemble import (
    Centre,
    aggregate_scores,
    load_ensemble,
    read_centre,
    score_padded,
    score_shared,
    shares_prefixes,
    write_centre,
)
from cai.train.reward.train import train_reward
from tests.models.architectures import KINDS, SIZES, prompts
from tests.train.builders import model_at, preferences, prompt, reward_config

ITEMS: list[Any] = [(prompt(i).messages, f"some answer {'more ' * i}") for i in range(5)]


@pytest.fixture
def folders(tiny_model_dir: Path, tmp_path: Path) -> list[Path]:
    """Three members of different shape, seed and labels."""
    model, out = model_at(tiny_model_dir), [tmp_path / f"reward-{i}" for i in range(3)]
    train_reward(reward_config(epochs=3.0), model, preferences(4), (), out[0], 0)
    train_reward(reward_config(epochs=3.0, max_length=24), model, preferences(4), (), out[1], 1)
    train_reward(reward_config(epochs=3.0), model, preferences(4, p=0.0), (), out[2], 2)
    return out


def test_members_on_one_base_score_as_each_does_alone(folders: list[Path], tiny_model_dir: Path) -> None:
    model = model_at(tiny_model_dir)
    alone = [[s.value for s in load_ensemble([folder], model).score(ITEMS)] for folder in folders]
    assert min(abs(a - b) for a, b in zip(alone[0], alone[2], strict=True)) > 0.01, "the members differ"
    together = load_ensemble(folders, model, aggregate="min")
    assert [m.name for m in together.members] == ["reward-0", "reward-1", "reward-2"]
    assert [m.max_length for m in together.members] == [512, 24, 512]
    for _ in range(2):  # the order in which adapters were last used changes nothing
        scores = together.score(ITEMS)
        for i, score in enumerate(scores):
            assert score.members == pytest.approx([a[i] for a in alone], abs=1e-4)
            assert score.value == min(score.members) and score.std > 0


def test_members_share_the_base_in_memory(folders: list[Path], tiny_model_dir: Path) -> None:
    def numbers(n: int) -> int:
        return sum(p.numel() for p in load_ensemble(folders[:1] * n, model_at(tiny_model_dir)).model.parameters())

    adapter = numbers(3) - numbers(2)
    assert 0 < adapter < numbers(2) / 4


def test_scores_count_from_the_centre(folders: list[Path], tiny_model_dir: Path) -> None:
    model = model_at(tiny_model_dir)
    centre = read_centre(folders[0])
    [before] = load_ensemble(folders[:1], model).score(ITEMS[:1])
    write_centre(folders[0], [centre + 1.0, centre + 2.0])
    [after] = load_ensemble(folders[:1], model).score(ITEMS[:1])
    assert before.value - after.value == pytest.approx(1.5, abs=1e-5)
    assert Centre(1.5, 2).mean == 1.5


def test_a_four_bit_base_keeps_a_single_member_beside_it(folders: list[Path], tiny_model_dir: Path) -> None:
    from msgspec.structs import replace

    ensemble = load_ensemble(folders[:1], replace(model_at(tiny_model_dir), precision="nf4"))
    assert ensemble.members[0].adapter is not None
    assert all(torch.isfinite(torch.tensor(s.value)) for s in ensemble.score(ITEMS))


def test_aggregation_by_hand() -> None:
    scores = (-1.0, 0.0, 4.0)  # mean 1, variance (4 + 1 + 9) / 3
    std = (14 / 3) ** 0.5
    assert aggregate_scores(scores, "mean") == RewardScore(1.0, std, scores)
    assert aggregate_scores(scores, "min").value == -1.0
    assert aggregate_scores(scores, "uncertainty", 2.0).value == pytest.approx(1.0 - 2 * std)
    for aggregate in ("mean", "min", "uncertainty"):
        assert aggregate_scores([0.3], aggregate) == RewardScore(0.3, 0.0, (0.3,))  # type: ignore[arg-type]


def test_members_of_different_bases_and_none_at_all_are_refused(folders: list[Path], tmp_path: Path) -> None:
    config = folders[1] / "adapter_config.json"
    config.write_text(config.read_text().replace(str(tmp_path.parent), "/elsewhere").replace("tiny", "other"))
    with pytest.raises(ModelError, match="must have the same base model"):
        load_ensemble(folders)
    with pytest.raises(ModelError, match="must have the same base model; found no member"):
        load_ensemble([])
    with pytest.raises(ModelError, match="no adapter"):
        load_ensemble([tmp_path])


def test_a_damaged_member_is_a_model_error(folders: list[Path]) -> None:
    file = folders[1] / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelError, match=rf"{folders[1].name}: the adapter's weights can't be read"):
        load_ensemble(folders)


@pytest.mark.parametrize("kind", KINDS)
def test_a_beginning_that_runs_once_changes_no_score(kind: str) -> None:
    config, _, extra = KINDS[kind]
    torch.manual_seed(0)
    scorer = hf.AutoModelForSequenceClassification.from_config(config(**SIZES, **extra, num_labels=1), attn_implementation="sdpa").eval()
    assert shares_prefixes(scorer)
    texts = prompts(12)
    assert score_shared(scorer, texts) == pytest.approx(score_padded(scorer, texts), abs=1e-4)
    scorer.config.layer_types = ["full_attention", "linear_attention", "full_attention"]
    assert not shares_prefixes(scorer), "its second layer keeps a state, not keys and values"


def test_a_text_that_ends_in_padding_is_scored_as_it_was_trained(folders: list[Path], tiny_model_dir: Path) -> None:
    ensemble = load_ensemble(folders[:1], model_at(tiny_model_dir))
    pad = ensemble.tokenizer.pad_token_id
    ids = [[5, 6, 7, pad], [5, 6, 7]]
    padded, plain = ensemble._score_all(ids, ensemble.members[0])
    assert padded == pytest.approx(plain, abs=1e-5), "the model's own forward reads the last token that is none"
