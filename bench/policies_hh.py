"""DPO, PPO and GRPO from the same SFT adapter and the same labels, compared at the same distance from it, by a gold reward model.

    python -m bench.policies_hh --pairs FILE --out FOLDER [--steps 40] [--batch-size 32] [--members 3] [--methods dpo,ppo,grpo]

The prompts of the file are dealt as in `bench.overoptimisation_hh`: the reward models' pairs, the gold reward model's, and those that
the policies are watched on share no prompt. The SFT adapter imitates chosen responses of the reward models' pairs; DPO trains on those
pairs, PPO and GRPO against the ensemble of reward models trained on them. Every policy is looked at as it trains, and its row is the look
whose KL from the SFT adapter is nearest to `--kl` nats, by default the largest that every method reached. Prints a Markdown table, and
leaves `policies.json` with every look in FOLDER. Run again after a kill it goes on from where it was.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from msgspec import to_builtins

from bench.overoptimisation_hh import say, train_scorers
from cai.core.jsonl import read_records, write_text
from cai.core.workspace import file_hash
from cai.recipe import LoraSpec, ModelSpec, MonitorConfig, OnlineConfig, PolicyConfig, PPOSpec, RewardConfig, SFTConfig
from cai.records import MonitorPoint, Preference, Prompt, SFTExample
from cai.stats import wilson
from cai.train.dpo import train_dpo
from cai.train.reward.ensemble import load_ensemble
from cai.train.rl.grpo import train_online
from cai.train.rl.monitor import FRONTIER, Items, Monitor, MonitorSpec, mean_interval
from cai.train.rl.ppo import train_ppo
from cai.train.rl.rewards import RewardFunction, proxy_of
from cai.train.sft import train_sft


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=Path, required=True, help="human-labelled pairs, in any format that cai reads")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--methods", default="dpo,ppo,grpo")
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--kl", type=float, help="nats per response at which the policies are compared")
    parser.add_argument("--steps", type=int, default=40, help="of PPO and GRPO; DPO goes over the pairs --dpo-epochs times")
    parser.add_argument("--dpo-epochs", type=float, default=1.0)
    parser.add_argument("--members", type=int, default=3)
    parser.add_argument("--aggregate", choices=("mean", "min", "uncertainty"), default="uncertainty")
    parser.add_argument("--proxy-pairs", type=int, default=300)
    parser.add_argument("--gold-pairs", type=int, default=600)
    parser.add_argument("--labels", choices=("human", "gold"), default="human", help="of the reward models' pairs; gold's own are people's")
    parser.add_argument("--test-pairs", type=int, default=200, help="to measure the reward models on")
    parser.add_argument("--balance-length", action="store_true", help="weigh pairs so that longer and shorter answers win equally often")
    parser.add_argument("--sft-examples", type=int, default=120)
    parser.add_argument("--watched", type=int, default=64)
    parser.add_argument("--every", type=int, default=5)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--rl-learning-rate", type=float, default=3e-4, help="of PPO and GRPO, which take few steps")
    parser.add_argument("--ppo-epochs", type=int, default=2, help="passes of PPO over a batch")
    parser.add_argument("--batch-size", type=int, default=32, help="responses a step of PPO and GRPO")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--max-length", type=int, default=256)
    parser.add_argument("--layers", type=int, default=10, help="how many of the last layers LoRA adapts")
    parser.add_argument("--precision", choices=("auto", "float32", "bfloat16", "nf4"), default="auto")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def note(name: str) -> Callable[[int, int, dict[str, float]], None]:
    """Return what shows a training's steps on standard error."""
    shown = ("loss", "reward", "kl", "objective/scores", "objective/kl", "rewards/margins")
    return lambda step, total, metrics: say(
        f"{name}: step {step}/{total} " + " ".join(f"{k} {metrics[k]:.3f}" for k in shown if k in metrics)
    )


def train_start(given: argparse.Namespace, pairs: Sequence[Preference]) -> Path:
    """Train the SFT adapter on chosen responses, or find it finished."""
    config = SFTConfig(precision=given.precision, max_length=given.max_length, lora=LoraSpec(layers=given.layers))
    examples = [SFTExample(p.prompt, p.chosen, (), p.source, p.provenance) for p in pairs[: given.sft_examples]]
    train_sft(config, ModelSpec(path=given.model), examples, given.out / "sft", given.seed, note("sft"))
    return given.out / "sft"


def train_policy(
    given: argparse.Namespace,
    method: str,
    sft: Path,
    members: Sequence[Path],
    gold: Path,
    pairs: Sequence[Preference],
    watched: Sequence[Prompt],
) -> list[MonitorPoint]:
    """Train one policy, or find it finished. Returns what its watch saw."""
    model, reward = ModelSpec(path=given.model, precision=given.precision), RewardConfig(aggregate=given.aggregate)
    prompts = list({p.prompt.id: p.prompt for p in pairs}.values())
    size, online = min(8, given.batch_size), OnlineConfig(max_tokens=given.max_tokens)
    out = given.out / f"policy-{method}"
    config = PolicyConfig(
        method=method,
        precision=given.precision,
        learning_rate=given.learning_rate if method == "dpo" else given.rl_learning_rate,
        batch_size=size,
        gradient_accumulation=1 if method == "dpo" else given.batch_size // size,
        epochs=given.dpo_epochs if method == "dpo" else given.steps * given.batch_size / online.num_generations / len(prompts),
        max_length=given.max_length,
        save_steps=given.every,
        beta=0.1 if method == "dpo" else 0.02,
        lora=LoraSpec(layers=given.layers),
        online=online,
        ppo=PPOSpec(
            total_episodes=given.steps * given.batch_size,
            num_ppo_epochs=given.ppo_epochs,
            response_length=given.max_tokens,
            temperature=1.0,
            kl_coef=0.02,
        ),
        watch=MonitorConfig(every_steps=given.every, prompts=given.watched, action="warn", select="last"),
    )
    ensemble = load_ensemble(members, model, given.aggregate).score
    gold_model = load_ensemble([gold], model)

    def score(items: Items) -> list[float]:
        return [s.value for s in gold_model.score(items)]

    def watch(rewarding: RewardFunction) -> Monitor:
        return Monitor(watched, config.watch, proxy_of(rewarding, watched), score, out / FRONTIER)

    reward_identity = ([file_hash(folder) for folder in (*members, gold)], given.aggregate, [p.id for p in watched])
    if method == "ppo":
        train_ppo(config, model, sft, members, reward, prompts, out, given.seed, note(method), gold=gold, monitor_prompts=watched)
    elif method == "dpo":
        watching = MonitorSpec(lambda: watch(RewardFunction(online.rewards, ensemble)), reward_identity, given.max_tokens, say)
        train_dpo(config, model, sft, pairs, out, given.seed, note(method), monitor_spec=watching)
    else:
        train_online(
            config,
            model,
            sft,
            prompts,
            lambda: RewardFunction(online.rewards, ensemble),
            reward_identity,
            out,
            given.seed,
            note(method),
            load_monitor=watch,
            warn=say,
        )
    return list(read_records(out / FRONTIER, MonitorPoint))


def table(looks: dict[str, list[MonitorPoint]], wanted: float | None) -> str:
    """Return the policies side by side, each at the look whose KL is nearest to the one wanted."""
    kl = min(max(p.kl for p in points) for points in looks.values()) if wanted is None else wanted
    lines = [
        f"n = {next(iter(looks.values()))[0].n} prompts; compared at a KL of {kl:.1f} nats per response; 95 % intervals\n",
        "| policy | step | KL | gold reward, gain | wins over SFT by gold | reward, gain | words | refusals | repeated |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    start = next(iter(looks.values()))[0]
    lines.append(f"| SFT | | 0 | | | | {start.words:.0f} | {_share(start.refusal_rate, start.n)} | {start.repetition:.0%} |")
    for method, points in looks.items():
        first, at = points[0], min(points[1:], key=lambda p: abs(p.kl - kl))
        gain, low, high = mean_interval([b - a for a, b in zip(first.gold_scores, at.gold_scores, strict=True)])
        won = sum(0.5 if a == b else float(b > a) for a, b in zip(first.gold_scores, at.gold_scores, strict=True))
        cells = (
            method.upper(),
            str(at.step),
            f"{at.kl:.1f}",
            f"{gain:+.2f} [{low:+.2f}, {high:+.2f}]",
            _share(won / at.n, at.n),
            f"{at.proxy - first.proxy:+.2f}",
            f"{at.words:.0f}",
            _share(at.refusal_rate, at.n),
            f"{at.repetition:.0%}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _share(value: float, n: int) -> str:
    low, high = wilson(value * n, n)
    return f"{value:.0%} [{low:.0%}, {high:.0%}]"


def main() -> None:
    """Train what is missing, look at what came of it, print."""
    given = arguments()
    started = time.monotonic()
    gold, members, pairs, watched, measured = train_scorers(given)
    sft = train_start(given, pairs)
    looks = {m: train_policy(given, m, sft, members, gold, pairs, watched) for m in given.methods.split(",")}
    report = {
        "policies": to_builtins(looks),
        "reward_models": measured,
        "seconds": round(time.monotonic() - started, 1),
        "settings": {k: str(v) if isinstance(v, Path) else v for k, v in vars(given).items() if k != "out"},
    }
    write_text(given.out / "policies.json", json.dumps(report, indent=1) + "\n")
    print(table(looks, given.kl))
    print(
        "\nreward models on held-out pairs: "
        + "; ".join(f"{k} {m['accuracy']:.0%} [{m['low']:.0%}, {m['high']:.0%}], n = {m['n']}" for k, m in measured.items())
    )


if __name__ == "__main__":
    main()
