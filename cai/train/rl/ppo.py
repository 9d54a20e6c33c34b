"""Proximal policy optimization from the SFT adapter (arXiv 1707.06347), on one shared base; ours, since TRL 1.16 has none.

A step samples responses from the live policy (`cai.train.rl.rollout`), lets the reward ensemble score them, and goes over them several
times (`cai.train.rl.ppo_update`). The details that decide whether it works, each with a test in `tests/train/test_ppo_details.py`, from
Z: Ziegler et al. 2019 (arXiv 1909.08593), S: Stiennon et al. 2020 (arXiv 2009.01325), and H: Huang et al. 2024, "The N+ Implementation
Details of RLHF with PPO" (arXiv 2403.17031):

1. The policy starts at the SFT model, which stays the reference (Z, S): the first step's KL is 0 and its first ratio 1.
2. The value function is a network of its own and starts as the reward model, head and all (S, H).
3. Dropout is off in every role (Z, H): it would look like a change of the policy.
4. Padding changes nothing (H): positions and masks are those of each row alone.
5. Logits are divided by the temperature of sampling wherever log-probabilities are taken (H).
6. A response ends at its first end token, which is trained on as any other; nothing after it counts (H).
7. The score is the reward model's at the end token, paid at the response's last token (Z, H).
8. A response that was cut at its limit pays `missing_eos_penalty` (S, H: the "EOS trick").
9. Scores are counted from their mean over some training pairs (Z normalises them to mean 0 at the start; H shifts them to 0 on the
   demonstrations): here by each member's `centre.json`; `score_clip` bounds them.
10. The KL to the reference is taxed token by token, by the difference of the sampled tokens' log-probabilities (Z, eq. 2).
11. The KL coefficient is fixed, or adapted to hold `target_kl`, with the error clipped to ±0.2 (Z, §2.2).
12. Advantages by generalised advantage estimation with γ = 1, λ = 0.95; after the last token the value is 0 (Z, S).
13. Advantages are whitened over the whole batch; `whiten_rewards` scales rewards too, without moving their mean (Z, H).
14. Policy and value losses are clipped, and the worse of clipped and free counts (H; values as in Z's code).
15. `num_ppo_epochs` passes over the batch, each in a new order, in minibatches without replacement (Z, H).
16. Adam's ε is 1e-5 and nothing decays (H); the rate falls in a line to 0 (S, H), after a warm-up as in our other trainings.
17. Gradients are clipped by the norm over all trained weights.

Departures:

a. Policy, reference, value function and reward models are adapters on one base (`cai.train.rl.shared_base`), not models.
b. Losses are means over the tokens of a whole minibatch. TRL took the mean of each micro-batch, so that its size changed the result.
c. A response that was cut is scored with the end token put after it: reward models have never seen a turn without one. H, and TRL after
   it, score it as it is, or give it a constant.
d. Every random number has a seed of its own, from the prompt and what it is for. So nothing random is kept in a checkpoint, and
   batch, number of processes and a kill change no response.
e. Score and KL are paid at the token itself; TRL's code paid the score one place after it, at a padding token that has a value too.

Import it inside functions only: it loads torch.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from msgspec.structs import replace

from cai.core.jsonl import write_records
from cai.errors import TrainingError
from cai.ids import content_hash, derive_seed
from cai.models.local.engine import stop_ids
from cai.models.local.loading import load_tokenizer, model_fingerprint
from cai.recipe import GOLD, ModelSpec, PolicyConfig, RewardConfig
from cai.records import MonitorPoint, Prompt
from cai.train.cards import CardFacts, write_card
from cai.train.checkpoints import TrainResult, finished_result, last_checkpoint
from cai.train.encode import encode_turn
from cai.train.reward.ensemble import aggregate_scores, read_centre
from cai.train.rl.monitor import FRONTIER, Items, Monitor, Scores, Verdict, alarm, keep_best, restore_best, verdict
from cai.train.rl.ppo_checkpoint import PPOState, load_state, save_state
from cai.train.rl.ppo_math import adapted_kl_coef
from cai.train.rl.ppo_update import World, make_batch, make_optimizer, update
from cai.train.rl.rollout import Episode, Task, check_finite, chunks, describe, encode_prompts, sample, tasks
from cai.train.rl.shared_base import POLICY, SharedBase, load_shared_base
from cai.train.running import HISTORY, OnLog, check_processes, explained, finish, forget, prepare, quiet_training, training_fingerprint

GoldScorer = Callable[[Items], Sequence[float]]
CHECKPOINT_SECONDS = 300.0
"""A checkpoint is due after this time too, not only every `save_steps`: a step may take minutes."""
FIRST_LOG_RATIO = 0.05
"""Largest mean |log π − log π_ref| of a token at the first step, where the two are the same weights."""


def train_ppo(
    config: PolicyConfig,
    model: ModelSpec,
    sft_adapter: Path | None,
    members: Sequence[Path],
    reward: RewardConfig,
    prompts: Sequence[Prompt],
    out: Path,
    seed: int,
    on_log: OnLog | None = None,
    *,
    gold: Path | GoldScorer | None = None,
    watched: Sequence[Prompt] = (),
    warn: Callable[[str], None] = lambda text: None,
    on_look: Callable[[MonitorPoint], None] = lambda point: None,
) -> TrainResult:
    """Train the policy against reward models, and save its adapter in `out` with tokenizer, model card and log.

    Resumes and repeats as `train_sft` does; a step is one round of sampling and updating.

    Args:
        config: the recipe's `policy` block. `config.lora` is without effect where there is an SFT adapter.
        model: the base model; its own adapter, if any, is not used.
        sft_adapter: where the policy starts, and its reference; None starts a new adapter, with the bare base as the reference.
        members: folders of the reward models, at least one, trained on the same base.
        reward: how members' scores become one.
        prompts: what to answer; at least one that leaves room for a response in `config.max_length`.
        out: folder for the adapter.
        seed: decides prompts' order, responses, minibatches, and a new adapter's initial weights.
        on_log: called after each step, with TRL's names for PPO and some more.
        gold: looks for over-optimisation (`cai.train.rl.monitor`): the folder of a reward model for the same base, which goes on it as one
        more
            adapter, or whatever scores texts; None looks for nothing. `config.watch` says when, and what follows.
        watched: the prompts to look at the policy on.
        warn: told, once, that the policy is over-optimised.
        on_look: told of each look at the policy.

    Raises:
        TrainingError: no prompt is left, the policy doesn't start at its reference, or training diverges.
        ModelError: the model, the adapter or a reward model can't be loaded, or they don't belong together.
    """
    from accelerate import PartialState
    from transformers import set_seed

    start = replace(model, adapter=None if sft_adapter is None else str(sft_adapter), precision=config.precision)
    tokenizer = load_tokenizer(start)
    rows, dropped = encode_prompts(tokenizer, prompts, config.max_length - config.ppo.response_length)
    if config.watch.action == "off" or not watched:
        gold = None
    judged_by = [*members, gold] if isinstance(gold, Path) else list(members)
    scorers = [(model_fingerprint(replace(start, adapter=str(m))), read_centre(m)) for m in judged_by]
    looked_at = None if gold is None else [p.id for p in watched]
    began = content_hash((model_fingerprint(start), scorers, reward.aggregate, reward.uncertainty_penalty, looked_at))
    fingerprint = training_fingerprint("policy", config, replace(model, adapter=None), rows, seed, began)
    if (done := finished_result(out, fingerprint)) is not None:
        forget(out)
        return done
    prepare(out)
    processes = PartialState(cpu=not torch.cuda.is_available())
    check_processes(processes.num_processes)
    with quiet_training(), explained(out):
        set_seed(seed)  # a new adapter's initial weights
        shared = load_shared_base(
            model, config.precision, sft_adapter, members, config.lora, gradient_checkpointing=config.gradient_checkpointing
        )
        count = processes.num_processes  # another number of them makes other steps, so it can't go on from these ones' checkpoints
        resumable = fingerprint if count == 1 else f"{fingerprint}:{count}"
        run = _PPORun(config, reward, shared, tokenizer, rows, seed, out, resumable, processes.process_index, count, warn)
        watch = None if gold is None else run.watch(gold, watched, on_look)
        result = run.train(watch, on_log, dropped)
    reference = "the bare base model" if sft_adapter is None else "the SFT adapter that it started from"
    method = f"PPO against {len(members)} reward model(s) by {reward.aggregate}, reference: {reference}"
    if processes.is_main_process and watch is not None and (best := restore_best(watch, out)) is not None:
        method += f"; the weights of step {best}, the best by gold reward"
    write_card(out, CardFacts("policy", model.path, method, dict(Counter(p.source for p in prompts)), config, result, seed))
    finish(out, fingerprint, result)
    return result


@dataclass
class _PPORun:
    """One training in progress."""

    config: PolicyConfig
    reward: RewardConfig
    shared: SharedBase
    tokenizer: Any
    prompts: list[tuple[str, list[int]]]
    seed: int
    out: Path
    fingerprint: str
    """Of what may go on from this training's checkpoints."""
    rank: int
    processes: int
    warn: Callable[[str], None]
    warned: bool = False

    def train(self, watch: Monitor | None, on_log: OnLog | None, dropped: dict[str, int]) -> TrainResult:
        """Train from the last whole checkpoint, or from the start; save adapter, tokenizer and log."""
        spec, config = self.config.ppo, self.config
        per_step = config.batch_size * config.gradient_accumulation * spec.num_mini_batches * self.processes
        episodes = spec.total_episodes or max(1, int(config.epochs * len(self.prompts)))
        total = math.ceil(episodes / per_step)
        per_update = spec.num_ppo_epochs * spec.num_mini_batches
        optimizer = make_optimizer(config, self.shared)
        state, resumed_from = self._begin(optimizer, watch)
        started = saved = time.monotonic()
        stopped = self._goes_wrong(watch)
        if watch is not None and state.step == 0 and watch.due(0, total):
            self._look(watch, 0)
        while state.step < total and not stopped:
            step = state.step + 1
            todo = tasks(self.prompts, self.seed, state.step * per_step, per_step)
            batch = make_batch(self._rollout(todo), spec, self.reward, state.kl_coef, self.shared.device)
            if step == 1:
                self._check_reference(batch.episodes)
            world = World(self.rank, self.processes, state.step * per_update, total * per_update)
            told = update(self.shared, optimizer, batch, config, step, self.seed, world)
            metrics = {**batch.metrics, **told, "episode": float(step * per_step)}
            state.step = step
            state.kl_coef = adapted_kl_coef(state.kl_coef, metrics["objective/kl"], spec.target_kl, per_step, spec.kl_horizon)
            state.history.append({"step": float(step), **metrics})
            if on_log is not None and self.rank == 0:
                on_log(step, total, metrics)
            stopped = watch is not None and watch.due(step, total) and self._look(watch, step) == "stop"
            late = time.monotonic() - saved > CHECKPOINT_SECONDS
            if self.rank == 0 and (step % config.save_steps == 0 or step == total or stopped or late):
                save_state(self.shared, optimizer, state, self.out, self.fingerprint)
                saved = time.monotonic()
        if self.rank == 0:
            self.shared.save(POLICY, self.out)
            self.tokenizer.save_pretrained(self.out)
            write_records(self.out / HISTORY, state.history)
        return TrainResult(
            steps=state.step,
            examples=state.step * per_step,
            dropped=dropped,
            metrics={k: v for k, v in state.history[-1].items() if k != "step"},
            seconds=time.monotonic() - started,
            resumed_from=resumed_from,
        )

    def _begin(self, optimizer: Any, watch: Monitor | None) -> tuple[PPOState, int]:
        """Return where the training is, after putting the last whole checkpoint back, and the step that it was made at."""
        from accelerate import PartialState

        with PartialState().main_process_first():  # the first removes what can't be used
            checkpoint = last_checkpoint(self.out, self.fingerprint)
        state = PPOState(0, self.config.ppo.kl_coef, []) if checkpoint is None else load_state(self.shared, optimizer, checkpoint)
        if watch is not None and self.rank == 0:
            watch.resume(state.step if checkpoint is not None else -1)
        return state, state.step

    def _rollout(self, todo: Sequence[Task]) -> list[Episode]:
        """Return the step's episodes, of which each process samples its share."""
        from accelerate.utils import gather_object

        spec = self.config.ppo
        mine = todo[self.rank :: self.processes]
        found = self._describe(mine, spec.response_length, spec.temperature)
        everyone: list[Episode] = sorted(gather_object(found), key=lambda e: e.index)
        check_finite(everyone, self.shared)
        return everyone

    def _describe(self, todo: Sequence[Task], max_tokens: int, temperature: float) -> list[Episode]:
        at_once = self.config.ppo.local_rollout_forward_batch_size
        ends = stop_ids(self.shared.causal, self.tokenizer)
        responses = sample(self.shared, todo, ends, max_tokens=max_tokens, temperature=temperature, at_once=at_once)
        end_id = self.tokenizer.eos_token_id
        return describe(self.shared, todo, responses, end_id=end_id, temperature=temperature, at_once=at_once)

    def watch(self, gold: Path | GoldScorer, watched: Sequence[Prompt], on_look: Callable[[MonitorPoint], None]) -> Monitor:
        """Return what looks at the policy, with the reward models on the shared base as its proxy."""
        if isinstance(gold, Path):
            self.shared.add_scorer(gold, GOLD)

        def proxy(items: Items) -> Scores:
            scores = self._scores(items, self.shared.members)
            judged = [aggregate_scores(s, self.reward.aggregate, self.reward.uncertainty_penalty) for s in scores]
            return Scores([s.value for s in judged], [s.std for s in judged] if len(self.shared.members) > 1 else ())

        def score(items: Items) -> Sequence[float]:
            return [s for [s] in self._scores(items, [GOLD])] if isinstance(gold, Path) else gold(items)

        return Monitor(watched, self.config.watch, proxy, score, self.out / FRONTIER, on_look)

    def _scores(self, items: Items, names: Sequence[str]) -> list[list[float]]:
        """Return what some reward models on the shared base say of texts, text by text."""
        turns = [encode_turn(self.tokenizer, messages, text) for messages, text in items]
        ids = [prompt + response for prompt, response in turns]
        parts = chunks(range(len(ids)), self.config.ppo.local_rollout_forward_batch_size)
        return torch.cat([self.shared.scores([ids[i] for i in part], names) for part in parts], 1).T.tolist()

    def _look(self, watch: Monitor, step: int) -> Verdict:
        """Let the watch see the policy as it is, at temperature 1 and on its own prompts, and keep the best weights."""
        from accelerate.utils import broadcast_object_list

        found: list[Any] = [None]
        if self.rank == 0:
            todo = [
                Task(i, encode_turn(self.tokenizer, p.messages, "")[0], derive_seed(self.seed, p.id, "watch"))
                for i, p in enumerate(watch.prompts)
            ]
            episodes = self._describe(todo, self.config.ppo.response_length, 1.0)
            kl = fmean(sum(e.logps) - sum(e.ref_logps) for e in episodes)
            found = [watch.observe(step, kl, [self.tokenizer.decode(e.response_ids, skip_special_tokens=True) for e in episodes])]
            keep_best(watch, self.out, lambda folder: self.shared.save(POLICY, folder))
            if found[0] != "go" and not self.warned:
                self.warned = True
                self.warn(alarm(watch, found[0]))
        if self.processes > 1:
            broadcast_object_list(found)
        return found[0]  # type: ignore[no-any-return]

    def _goes_wrong(self, watch: Monitor | None) -> bool:
        """Whether the watch had said to stop before a kill."""
        from accelerate.utils import broadcast_object_list

        found = [watch is not None and bool(watch.points) and verdict(watch.points, watch.config) == "stop"]
        if self.processes > 1:
            broadcast_object_list(found)
        return found[0]

    def _check_reference(self, episodes: Sequence[Episode]) -> None:
        """Raise `TrainingError` where policy and reference differ before the first update."""
        apart = fmean(abs(a - b) for e in episodes for a, b in zip(e.logps, e.ref_logps, strict=True))
        if apart > FIRST_LOG_RATIO:
            raise TrainingError(
                f"before the first update the policy already differs from its reference: mean |log-ratio| of a token is {apart:.3f}, "
                f"expected at most {FIRST_LOG_RATIO}. The reference is not the adapter that training starts from."
            )
