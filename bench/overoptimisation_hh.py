"""Over-optimisation on human labels: a policy trained hard against one reward model, and against an ensemble, each watched by gold.

    python -m bench.overoptimisation_hh --pairs FILE --out FOLDER [--sft ADAPTER] [--method grpo|rloo|ppo] [--steps 100] [--members 3]
                                        [--labels human|gold] [--balance-length]

The prompts of the file are dealt into three parts that share none: the reward models' pairs (on whose prompts the policy also
samples), the gold reward model's, and those that the policies are watched on, with whose pairs the reward models are measured. The
single reward model is the ensemble's first member, so both arms see the same labels and start from the same adapter. With `--labels
gold` the gold reward model labels the others' pairs, as in Gao et al. (arXiv 2210.10760, §2): then gold is what the labels mean by
definition, however well it agrees with people. Prints one JSON object, and leaves `frontier.html` and `frontier.json` in FOLDER. Run
again after a kill it goes on from where it was; FOLDER also keeps what a later run with other --steps or another --method can use again.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace as replace_fields
from pathlib import Path
from statistics import fmean

from msgspec.structs import replace

from cai.core.jsonl import read_records, write_text
from cai.core.workspace import file_hash
from cai.data.filters import split_by_prompt
from cai.errors import RecipeError
from cai.ids import split_fraction
from cai.labels.load import load_pairs
from cai.models.local.loading import load_tokenizer
from cai.recipe import LoraSpec, ModelSpec, MonitorConfig, OnlineConfig, PolicyConfig, PPOSpec, RewardConfig
from cai.records import MonitorPoint, Preference, Prompt
from cai.report.page import render_frontier
from cai.train.encode import encode_turn
from cai.train.reward.ensemble import RewardEnsemble, load_ensemble, score_pairs
from cai.train.reward.metrics import measure_margins
from cai.train.reward.train import train_reward
from cai.train.rl.grpo import train_online
from cai.train.rl.monitor import FRONTIER, Items, Monitor, best_step
from cai.train.rl.ppo import train_ppo
from cai.train.rl.rewards import RewardFunction, proxy_of


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=Path, required=True, help="human-labelled pairs, in any format that cai reads")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sft", type=Path, help="adapter that the policies start from; without one they start from the bare model")
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--method", choices=("grpo", "rloo", "ppo"), default="grpo")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--members", type=int, default=3)
    parser.add_argument("--aggregate", choices=("mean", "min", "uncertainty"), default="uncertainty")
    parser.add_argument("--penalty", type=float, default=1.0, help="standard deviations taken off by `uncertainty`")
    parser.add_argument("--proxy-pairs", type=int, default=300)
    parser.add_argument("--gold-pairs", type=int, default=600)
    parser.add_argument("--labels", choices=("human", "gold"), default="human", help="of the reward models' pairs; gold's own are people's")
    parser.add_argument("--test-pairs", type=int, default=200, help="to measure the reward models on")
    parser.add_argument("--balance-length", action="store_true", help="weigh pairs so that longer and shorter answers win equally often")
    parser.add_argument("--watched", type=int, default=48)
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--beta", type=float, default=0.001, help="KL coefficient: low, to see what happens")
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--batch-size", type=int, default=32, help="responses a step")
    parser.add_argument("--num-generations", type=int, default=8)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--max-length", type=int, default=256)
    parser.add_argument("--layers", type=int, default=10, help="how many of the last layers LoRA adapts")
    parser.add_argument("--precision", choices=("auto", "float32", "bfloat16", "nf4"), default="auto")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def say(text: str) -> None:
    """Show a line on standard error."""
    print(text, file=sys.stderr, flush=True)


def deal(given: argparse.Namespace) -> tuple[list[Preference], list[Preference], list[Preference], list[Prompt]]:
    """Return pairs to train the proxy on, pairs to train gold on, pairs to test both on, and prompts of these to watch."""
    tokenizer = load_tokenizer(ModelSpec(path=given.model))
    pairs = load_pairs(given.pairs).preferences
    room = given.max_length - given.max_tokens
    short = [p for p in pairs if len(encode_turn(tokenizer, p.prompt.messages, "")[0]) <= room]
    rest, watched = split_by_prompt(short, 0.15, f"watched:{given.seed}")
    proxy, gold = split_by_prompt(rest, given.gold_pairs / (given.gold_pairs + given.proxy_pairs), f"gold:{given.seed}")
    dealt = []
    for name, found, wanted in (("proxy", proxy, given.proxy_pairs), ("gold", gold, given.gold_pairs)):
        ordered = sorted(found, key=lambda p: (split_fraction(p.id, f"order:{given.seed}"), p.id))
        if len(ordered) < wanted:
            raise RecipeError(
                f"{given.pairs}: {len(ordered)} pairs for {name} (of {len(pairs)}, {len(short)} have prompts of at most {room} tokens), "
                f"fewer than --{name}-pairs {wanted}"
            )
        dealt.append(ordered[:wanted])
    test = sorted(watched, key=lambda p: (split_fraction(p.id, f"test:{given.seed}"), p.id))[: given.test_pairs]
    prompts = list({p.prompt.id: p.prompt for p in watched}.values())
    prompts = sorted(prompts, key=lambda p: (split_fraction(p.id, f"watch:{given.seed}"), p.id))[: given.watched]
    return dealt[0], dealt[1], test, sorted(prompts, key=lambda p: p.id)


def relabelled(pairs: Sequence[Preference], scorer: RewardEnsemble) -> list[Preference]:
    """Return pairs with the better side by a reward model as chosen."""
    scored = score_pairs(scorer, pairs, held_out=True)
    return [replace_fields(p if s.margin > 0 else p.swapped(), p_chosen=1.0, source="gold") for p, s in zip(pairs, scored, strict=True)]


def train_scorers(given: argparse.Namespace) -> tuple[Path, list[Path], list[Preference], list[Prompt], dict[str, dict[str, float]]]:
    """Train gold and the reward models, or find them finished, and measure them by people's and, where it labels, by gold's labels.

    Returns:
        Gold, the reward models, the pairs that these were trained on, the prompts to watch, and what was measured.
    """
    pairs, gold_pairs, test, watched = deal(given)
    model = ModelSpec(path=given.model, precision=given.precision)
    gold = train_scorer(given, "gold", gold_pairs, 32, given.seed + 1000, given.balance_length)
    truths = {"people": [p.p_chosen for p in test]}
    if given.labels == "gold":
        scorer = load_ensemble([gold], model)
        pairs = relabelled(pairs, scorer)
        truths["gold"] = [float(s.margin > 0) for s in score_pairs(scorer, test, held_out=True)]
    balance = given.balance_length and given.labels == "human"
    members = [train_scorer(given, f"reward-{i}", pairs, 16, given.seed + i, balance) for i in range(given.members)]
    measured = {}
    for folder in (gold, *members) if test else ():
        margins = [s.margin for s in score_pairs(load_ensemble([folder], model), test, held_out=True)]
        for by in truths if folder != gold else ("people",):
            found = measure_margins(margins, truths[by])
            measured[f"{folder.name} by {by}"] = {name: getattr(found, name) for name in ("accuracy", "low", "high", "n")}
            say(f"{folder.name}: prefers what {by} do in {found.accuracy:.1%} [{found.low:.1%}, {found.high:.1%}] of {found.n} pairs")
    return gold, members, pairs, watched, measured


def train_scorer(given: argparse.Namespace, name: str, train: Sequence[Preference], rank: int, seed: int, balance: bool) -> Path:
    """Train a reward model, or find it finished."""
    config = RewardConfig(
        max_length=given.max_length,
        precision=given.precision,
        lora=LoraSpec(layers=given.layers, rank=rank, alpha=2 * rank),
        balance_length=balance,
        save_steps=20,
    )
    model, out = ModelSpec(path=given.model, precision=given.precision), given.out / name

    def note(step: int, total: int, metrics: dict[str, float]) -> None:
        if step % 10 == 0 or step == total:
            say(f"{name}: step {step}/{total}, loss {metrics['loss']:.3f}")

    train_reward(config, model, train, (), out, seed, note)
    return out


def train_arm(
    given: argparse.Namespace, name: str, members: Sequence[Path], gold: Path, prompts: list[Prompt], watched: list[Prompt]
) -> Path:
    """Train a policy against some reward models, watched by gold, or find it finished. Returns its folder."""
    online = OnlineConfig(num_generations=given.num_generations, max_tokens=given.max_tokens)
    per_step = given.batch_size // given.num_generations
    config = PolicyConfig(
        method=given.method,
        beta=given.beta,
        precision=given.precision,
        learning_rate=given.learning_rate,
        batch_size=min(8, given.batch_size),
        gradient_accumulation=max(1, given.batch_size // 8),
        epochs=given.steps * per_step / len(prompts),
        max_length=given.max_length,
        save_steps=given.every,
        lora=LoraSpec(layers=given.layers),
        online=online,
        watch=MonitorConfig(every_steps=given.every, prompts=given.watched, action="warn", select="last"),
    )
    model, out = ModelSpec(path=given.model, precision=given.precision), given.out / f"{name}-{given.method}-{given.steps}"
    aggregate = given.aggregate if len(members) > 1 else "mean"

    def note(step: int, total: int, metrics: dict[str, float]) -> None:
        say(f"{name}: step {step}/{total} " + " ".join(f"{k} {metrics[k]:.3f}" for k in ("reward", "kl") if k in metrics))

    if given.method == "ppo":
        episodes = given.steps * given.batch_size
        ppo = PPOSpec(total_episodes=episodes, response_length=given.max_tokens, kl_coef=given.beta, temperature=online.temperature)
        config = replace(config, ppo=ppo)
        reward = RewardConfig(members=len(members), aggregate=aggregate, uncertainty_penalty=given.penalty)
        train_ppo(config, model, given.sft, members, reward, prompts, out, given.seed, note, gold=gold, monitor_prompts=watched)
        return out

    def rewarding() -> RewardFunction:
        return RewardFunction(online.rewards, load_ensemble(members, model, aggregate, given.penalty).score)

    def watch(proxy: RewardFunction) -> Monitor:
        scorer = load_ensemble([gold], model)

        def score(items: Items) -> list[float]:
            return [s.value for s in scorer.score(items)]

        return Monitor(watched, config.watch, proxy_of(proxy, watched), score, out / FRONTIER)

    reward_identity = ([file_hash(folder) for folder in (*members, gold)], aggregate, given.penalty, [p.id for p in watched])
    train_online(config, model, given.sft, prompts, rewarding, reward_identity, out, given.seed, note, load_monitor=watch, warn=say)
    return out


def summary(points: Sequence[MonitorPoint]) -> dict[str, object]:
    """Return what an arm came to: gold at its best and at the end, and the frontier itself."""
    best = next(p for p in points if p.step == best_step(points))
    first, last = points[0], points[-1]
    shown = (
        "step",
        "kl",
        "proxy",
        "disagreement",
        "gold",
        "gold_low",
        "gold_high",
        "words",
        "refusal_rate",
        "repetition",
        "distinct",
        "collapse",
        "n",
        "verdict",
    )
    return {
        "best": {"step": best.step, "kl": best.kl, "gold": best.gold, "gold_low": best.gold_low, "gold_high": best.gold_high},
        "proxy_gain": last.proxy - first.proxy,
        "gold_gain": fmean(b - a for a, b in zip(first.gold_scores, last.gold_scores, strict=True)),
        "gold_gain_at_best": fmean(b - a for a, b in zip(first.gold_scores, best.gold_scores, strict=True)),
        "frontier": [{name: getattr(p, name) for name in shown} for p in points],
    }


def main() -> None:
    """Train what is missing, look at what came of it, print."""
    given = arguments()
    if given.batch_size % given.num_generations or given.batch_size % min(8, given.batch_size):
        raise RecipeError("--batch-size must be a multiple of --num-generations and, above 8, of 8")
    started = time.monotonic()
    gold, members, pairs, watched, measured = train_scorers(given)
    prompts = list({p.prompt.id: p.prompt for p in pairs}.values())
    arms = {"one reward model": members[:1]} | ({f"{len(members)} reward models": members} if len(members) > 1 else {})
    points = {}
    for name, used in arms.items():
        out = train_arm(given, f"policy-{len(used)}", used, gold, prompts, watched)
        points[name] = list(read_records(out / FRONTIER, MonitorPoint))
    report = {
        "arms": {name: summary(found) for name, found in points.items()},
        "reward_models": measured,
        "seconds": round(time.monotonic() - started, 1),
        "settings": {k: str(v) if isinstance(v, Path) else v for k, v in vars(given).items() if k != "out"},
    }
    write_text(given.out / "frontier.json", json.dumps(report, indent=1) + "\n")
    write_text(given.out / "frontier.html", render_frontier("Over-optimisation, with one reward model and with several", points))
    print(json.dumps(report))


if __name__ == "__main__":
    main()
