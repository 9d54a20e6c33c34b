"""Proximal policy optimization (PPO, arXiv 1707.06347) from the SFT adapter, on one shared base model. TRL 1.16 has no PPO trainer.

A step samples responses from the current policy (`cai.train.rl.rollout`), scores them with the reward ensemble, and makes several passes
over them (`cai.train.rl.ppo_update`). The following implementation details each have a test in `tests/train/test_ppo_details.py`. Sources:
Z: Ziegler et al. 2019 (arXiv 1909.08593), S: Stiennon et al. 2020 (arXiv 2009.01325), H: Huang et al. 2024, "The N+ Implementation
Details of RLHF with PPO" (arXiv 2403.17031).

1. The policy starts at the SFT model, which is the reference (Z, S): in the first step the KL is 0 and the first ratio 1.
2. The value function is a separate network, initialised from the reward model, including its head (S, H).
3. Dropout is off everywhere (Z, H): it would look like a change of the policy.
4. Padding has no effect (H): each row has its own position ids and mask.
5. Logits are divided by the sampling temperature wherever log-probabilities are computed (H).
6. A response ends at its first end token, which is trained on like any other token; tokens after it are ignored (H).
7. The score is the reward model's at the end token. It is the reward of the response's last token (Z, H).
8. `missing_eos_penalty` is subtracted from the score of a response that was cut at the limit (S, H: the "EOS trick"), and of one that ends
   inside its reasoning. Reward models don't see a reasoning.
9. Scores are centred on their mean over some training pairs, by each member's `centre.json` (Z normalises them to mean 0 at the start;
   H shifts them to 0 on the demonstrations). They are not clipped.
10. The KL penalty is per token: the difference of the sampled token's log-probabilities under policy and reference (Z, eq. 2).
    Its coefficient is fixed (S, H).
11. Advantages are computed by generalised advantage estimation with γ = 1, λ = 0.95; after the last token the value is 0 (Z, S).
12. Advantages are whitened over the whole batch (Z, H); rewards are not.
13. Policy and value losses are clipped; the larger of the clipped and unclipped loss counts (H; values as in Z's code).
14. `num_ppo_epochs` passes over the batch, each in a new order, in minibatches without replacement (Z, H).
15. Adam's ε is 1e-5, without weight decay (H); the learning rate decays linearly to 0 (S, H), after the warm-up of the other trainings.
16. Gradients are clipped by their norm over all trained weights.

Departures:

a. Policy, reference, value function and reward models are adapters on one base model (`cai.train.rl.shared_base`).
b. Losses are means over the tokens of a whole minibatch. TRL took the mean of each micro-batch, so that its size changed the result.
c. A response that was cut is scored with an end token appended, because reward models are trained on complete turns. H and TRL score it
   without one, or give it a constant.
d. Every random draw has its own seed, from the prompt and the purpose. So checkpoints hold no random state, and batch size, number of
   processes and resuming don't change the responses.
e. Score and KL are rewards of the token itself. TRL's code put the score one position later, at a padding token that has a value too.

Import this module inside functions only: it loads torch.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from cai.core.jsonl import write_records
from cai.errors import TrainingError
from cai.ids import content_hash, derive_seed
from cai.models.local.engine import stop_ids
from cai.models.local.fingerprint import model_fingerprint
from cai.models.local.loading import load_tokenizer
from cai.models.local.thinking import thinking_budget
from cai.recipe import GOLD, RewardConfig
from cai.records import MonitorPoint, Prompt
from cai.train.cards import CardFacts, sources_of
from cai.train.checkpoints import TrainResult, last_checkpoint
from cai.train.encode import encode_turn, encoder_of
from cai.train.live_policy import shared_limit_warning
from cai.train.monitor import FRONTIER, Items, Monitor, Scores, Verdict, alarm, keep_best, restore_best, verdict
from cai.train.reward.ensemble import aggregate_scores, scorer_fingerprints
from cai.train.rl.ppo_checkpoint import PPOState, load_state, save_state
from cai.train.rl.ppo_update import World, make_batch, make_optimizer, update
from cai.train.rl.rollout import Episode, Task, check_finite, chunks, encode_prompts, evaluate_responses, sample, tasks
from cai.train.rl.shared_base import POLICY, SharedBase, load_shared_base
from cai.train.running import (
    HISTORY,
    PolicyJob,
    begin,
    check_processes,
    explained,
    finish,
    quiet_training,
)

GoldScorer = Callable[[Items], Sequence[float]]
CHECKPOINT_SECONDS = 300.0
"""Longest time between checkpoints, in addition to `save_steps`: a step may take minutes."""
FIRST_LOG_RATIO = 0.05
"""Largest mean |log π − log π_ref| per token at the first step, when both have the same weights."""


@dataclass(frozen=True, slots=True)
class PPOWatch:
    """What the over-optimization monitor (`cai.train.monitor`) of a training with PPO observes."""

    gold: Path | GoldScorer
    """The gold reward: the folder of a reward model for the same base model, which becomes one more adapter on it, or a function that
    scores texts."""
    prompts: Sequence[Prompt]
    """Held-out prompts."""
    on_observation: Callable[[MonitorPoint], None] = lambda point: None
    """Called with each observation after it is written."""


def train_ppo(
    job: PolicyJob, members: Sequence[Path], reward: RewardConfig, prompts: Sequence[Prompt], watch: PPOWatch | None = None
) -> TrainResult:
    """Train the policy with PPO against reward models, and save its adapter with tokenizer, model card and log.

    Resumes after a kill, and returns the result of a finished training, as `train_sft` does. A step is one round of sampling and updates.

    Args:
        job: its `on_log` gets TRL's metric names for PPO and some more.
        members: folders of the reward models, at least one, trained on the same base model.
        prompts: prompts to sample responses to; at least one that leaves room for a response in `config.max_length`.
        watch: None turns the monitor off. The recipe's `policy.watch` configures it.

    Raises:
        TrainingError: no prompt is left, the policy doesn't start at its reference, or training diverges.
    """
    from accelerate import PartialState
    from transformers import set_seed

    config, out, start = job.config, job.out, job.start
    tokenizer = load_tokenizer(start)
    rows, dropped = encode_prompts(tokenizer, prompts, config.max_length - config.ppo.most_tokens)
    if config.watch.action == "off" or (watch is not None and not watch.prompts):
        watch = None
    scorer_folders = [*members, watch.gold] if watch is not None and isinstance(watch.gold, Path) else list(members)
    scorers = scorer_fingerprints(scorer_folders, start)
    prompt_ids = None if watch is None else [p.id for p in watch.prompts]
    identity = content_hash((model_fingerprint(start), scorers, reward.aggregate, reward.uncertainty_penalty, prompt_ids))
    fingerprint = job.fingerprint(rows, identity)
    if (done := begin(out, fingerprint)) is not None:
        return done
    processes = PartialState(cpu=not torch.cuda.is_available())
    check_processes(processes.num_processes)
    if processes.is_main_process and (warning := shared_limit_warning(tokenizer, config.ppo, "ppo")):
        job.warn(warning)
    with quiet_training(), explained(out):
        set_seed(job.seed)  # initial weights of a new adapter
        shared = load_shared_base(
            job.model, config.precision, job.sft_adapter, members, config.lora, gradient_checkpointing=config.gradient_checkpointing
        )
        count = processes.num_processes  # steps depend on the number of processes, so another number can't resume from these checkpoints
        resumable = fingerprint if count == 1 else f"{fingerprint}:{count}"
        run = _PPORun(job, reward, shared, tokenizer, rows, resumable, processes.process_index, count)
        monitor = None if watch is None else run.monitor(watch)
        result = run.train(monitor, dropped)
    method = f"PPO against {len(members)} reward model(s) by {reward.aggregate}, reference: {job.start_name}"
    if processes.is_main_process and monitor is not None and (best := restore_best(monitor, out)) is not None:
        method += f"; the weights of step {best}, the best by gold reward"
    finish(out, fingerprint, CardFacts("policy", job.model.path, method, sources_of(prompts), config, result, job.seed))
    return result


@dataclass
class _PPORun:
    """One training in progress."""

    job: PolicyJob
    reward: RewardConfig
    shared: SharedBase
    tokenizer: Any
    prompts: list[tuple[str, list[int]]]
    fingerprint: str
    """Fingerprint of the trainings that may resume from this one's checkpoints."""
    rank: int
    processes: int
    warned: bool = False

    def train(self, monitor: Monitor | None, dropped: dict[str, int]) -> TrainResult:
        """Train from the last complete checkpoint, or from the start; save adapter, tokenizer and log."""
        spec, config = self.job.config.ppo, self.job.config
        per_step = config.batch_size * config.gradient_accumulation * spec.num_mini_batches * self.processes
        episodes = spec.total_episodes or max(1, int(config.epochs * len(self.prompts)))
        total = math.ceil(episodes / per_step)
        per_update = spec.num_ppo_epochs * spec.num_mini_batches
        optimizer = make_optimizer(config, self.shared)
        state, resumed_from = self._begin(optimizer, monitor)
        started = saved = time.monotonic()
        stopped = self._was_stopped(monitor)
        if monitor is not None and state.step == 0 and monitor.due(0, total):
            self._observe(monitor, 0)
        while state.step < total and not stopped:
            step = state.step + 1
            todo = tasks(self.prompts, self.job.seed, state.step * per_step, per_step)
            batch = make_batch(self._rollout(todo), spec, self.reward, self.shared.device)
            if step == 1:
                self._check_reference(batch.episodes)
            world = World(self.rank, self.processes, state.step * per_update, total * per_update)
            measured = update(self.shared, optimizer, batch, config, step, self.job.seed, world)
            metrics = {**batch.metrics, **measured, "episode": float(step * per_step)}
            state.step = step
            state.history.append({"step": float(step), **metrics})
            if self.job.on_log is not None and self.rank == 0:
                self.job.on_log(step, total, metrics)
            stopped = monitor is not None and monitor.due(step, total) and self._observe(monitor, step) == "stop"
            late = time.monotonic() - saved > CHECKPOINT_SECONDS
            if self.rank == 0 and (step % config.save_steps == 0 or step == total or stopped or late):
                save_state(self.shared, optimizer, state, self.job.out, self.fingerprint)
                saved = time.monotonic()
        if self.rank == 0:
            self.shared.save(POLICY, self.job.out)
            self.tokenizer.save_pretrained(self.job.out)
            write_records(self.job.out / HISTORY, state.history)
        return TrainResult(
            steps=state.step,
            examples=state.step * per_step,
            dropped=dropped,
            metrics={k: v for k, v in state.history[-1].items() if k != "step"},
            seconds=time.monotonic() - started,
            resumed_from=resumed_from,
        )

    def _begin(self, optimizer: Any, monitor: Monitor | None) -> tuple[PPOState, int]:
        """Load the last complete checkpoint, if any; return the training's state and the step that it resumes from."""
        from accelerate import PartialState

        with PartialState().main_process_first():  # rank 0 removes unusable checkpoints
            checkpoint = last_checkpoint(self.job.out, self.fingerprint)
        state = PPOState(0, []) if checkpoint is None else load_state(self.shared, optimizer, checkpoint)
        if monitor is not None and self.rank == 0:
            monitor.resume(state.step if checkpoint is not None else -1)
        return state, state.step

    def _rollout(self, todo: Sequence[Task]) -> list[Episode]:
        """Return the step's episodes. Each process samples its share."""
        from accelerate.utils import gather_object

        share = self._episodes(todo[self.rank :: self.processes], self.job.config.ppo.temperature)
        episodes: list[Episode] = sorted(gather_object(share), key=lambda e: e.index)
        check_finite(episodes, self.shared)
        return episodes

    def _episodes(self, todo: Sequence[Task], temperature: float) -> list[Episode]:
        spec, encoder = self.job.config.ppo, encoder_of(self.tokenizer)
        at_once, longest = spec.local_rollout_forward_batch_size, spec.response_length
        budget = thinking_budget(encoder.sampled, longest, spec.thinking_tokens)
        ends = stop_ids(self.shared.causal, encoder)
        responses = sample(self.shared, todo, ends, max_tokens=longest, temperature=temperature, at_once=at_once, budget=budget)
        return evaluate_responses(self.shared, todo, responses, encoder=encoder, temperature=temperature, at_once=at_once)

    def monitor(self, watch: PPOWatch) -> Monitor:
        """Return the over-optimization monitor, with the reward models on the shared base as its proxy."""
        gold = watch.gold
        if isinstance(gold, Path):
            self.shared.add_scorer(gold, GOLD)

        def proxy(items: Items) -> Scores:
            scores = self._scores(items, self.shared.members)
            rewards = [aggregate_scores(s, self.reward.aggregate, self.reward.uncertainty_penalty) for s in scores]
            return Scores([r.value for r in rewards], [r.std for r in rewards] if len(self.shared.members) > 1 else ())

        def score(items: Items) -> Sequence[float]:
            return [s for [s] in self._scores(items, [GOLD])] if isinstance(gold, Path) else gold(items)

        return Monitor(watch.prompts, self.job.config.watch, proxy, score, self.job.out / FRONTIER, watch.on_observation)

    def _scores(self, items: Items, names: Sequence[str]) -> list[list[float]]:
        """Return the scores of texts by reward models on the shared base, one list per text."""
        turns = [encode_turn(self.tokenizer, messages, text) for messages, text in items]
        ids = [prompt + response for prompt, response in turns]
        parts = chunks(range(len(ids)), self.job.config.ppo.local_rollout_forward_batch_size)
        return torch.cat([self.shared.scores([ids[i] for i in part], names) for part in parts], 1).T.tolist()

    def _observe(self, monitor: Monitor, step: int) -> Verdict:
        """Observe the current policy at temperature 1 on the monitor's prompts, and keep the best weights."""
        from accelerate.utils import broadcast_object_list

        verdicts: list[Any] = [None]
        if self.rank == 0:
            todo = [
                Task(i, encode_turn(self.tokenizer, p.messages, "")[0], derive_seed(self.job.seed, p.id, "watch"))
                for i, p in enumerate(monitor.prompts)
            ]
            episodes = self._episodes(todo, 1.0)
            kl = fmean(sum(e.logps) - sum(e.ref_logps) for e in episodes)
            verdicts = [monitor.observe(step, kl, [encoder_of(self.tokenizer).answer(e.response_ids) for e in episodes])]
            keep_best(monitor, self.job.out, lambda folder: self.shared.save(POLICY, folder))
            if verdicts[0] != "go" and not self.warned:
                self.warned = True
                self.job.warn(alarm(monitor, verdicts[0]))
        if self.processes > 1:
            broadcast_object_list(verdicts)
        return verdicts[0]  # type: ignore[no-any-return]

    def _was_stopped(self, monitor: Monitor | None) -> bool:
        """Whether the monitor's verdict was `stop` before the training was killed."""
        from accelerate.utils import broadcast_object_list

        stopped = [monitor is not None and bool(monitor.points) and verdict(monitor.points, monitor.config) == "stop"]
        if self.processes > 1:
            broadcast_object_list(stopped)
        return stopped[0]

    def _check_reference(self, episodes: Sequence[Episode]) -> None:
        """Raise `TrainingError` if policy and reference differ before the first update."""
        difference = fmean(abs(a - b) for e in episodes for a, b in zip(e.logps, e.ref_logps, strict=True))
        if difference > FIRST_LOG_RATIO:
            raise TrainingError(
                f"before the first update the policy already differs from its reference: mean |log-ratio| per token is {difference:.3f}, "
                f"expected at most {FIRST_LOG_RATIO}. The reference is not the adapter that training starts from."
            )
