"""Run one training from start to finish: resume, check, train, save. Shared by all methods."""

import contextlib
import errno
import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from cai.core.jsonl import disk_error, write_records
from cai.errors import StoreError, TrainingError
from cai.ids import content_hash
from cai.recipe import ModelSpec, PolicyConfig, TrainSpec
from cai.train.cards import CardFacts, write_card
from cai.train.checkpoints import FINISHED, TrainResult, finished_result, last_checkpoint, mark_finished, remove_checkpoints

OnLog = Callable[[int, int, dict[str, float]], None]
"""Called after each step with its number (from 1), the total number of steps, and the step's metrics."""
HISTORY = "training_log.jsonl"
"""The training log in the output folder, one line per step."""


@dataclass(frozen=True, slots=True)
class PolicyJob:
    """One training of a policy, apart from its data and its rewards."""

    config: PolicyConfig
    """The recipe's `policy` block."""
    model: ModelSpec
    """The base model. Its own adapter, if any, is not used."""
    sft_adapter: Path | None
    """The policy's start and its reference; None starts from a new adapter, with the base model as the reference."""
    out: Path
    """Folder for the adapter, with tokenizer, model card and log."""
    seed: int
    """Decides the order, the samples, and the initial weights of a new adapter."""
    on_log: OnLog | None = None
    """Called after each step."""
    warn: Callable[[str], None] = lambda text: None
    """Called with a warning for the user."""

    @property
    def start(self) -> ModelSpec:
        """The start and the reference: the base model, with the SFT adapter if there is one, in the training's precision."""
        adapter = None if self.sft_adapter is None else str(self.sft_adapter)
        return replace(self.model, adapter=adapter, precision=self.config.precision)

    @property
    def start_name(self) -> str:
        """What the policy starts from, for its card."""
        return "the base model" if self.sft_adapter is None else "the SFT adapter that it started from"

    def fingerprint(self, rows: Sequence[Any], start: Any) -> str:
        """Return `training_fingerprint`; `start` identifies the start, and what else decides the training."""
        return training_fingerprint("policy", self.config, replace(self.model, adapter=None), rows, self.seed, start)


def training_fingerprint(kind: str, config: TrainSpec, model: ModelSpec, rows: Sequence[Any], seed: int, start: Any = None) -> str:
    """Return a hash of everything that determines the result of a training.

    Args:
        kind: `sft`, `reward` or `policy`.
        model: the base model, hashed by its weights, not its path.
        rows: token ids and labels.
        start: fingerprint of the adapter that it starts from, if any.
    """
    from cai.models.local.fingerprint import model_fingerprint

    weights = model_fingerprint(replace(model, precision=config.precision))
    return content_hash((kind, config, weights, content_hash(list(rows), 64), seed, start))


def train_and_save(
    trainer: Any, tokenizer: Any, out: Path, *, fingerprint: str, on_log: OnLog | None, dropped: dict[str, int]
) -> TrainResult:
    """Train from the last complete checkpoint, or from the start, and save adapter, tokenizer and log. Call `finish` afterwards."""
    from transformers import PrinterCallback

    from cai.train.trainers import ProgressCallback

    _check(trainer)
    # a checkpoint's position in the data counts steps of all processes, so another number of processes can't resume from it
    resumable = fingerprint if trainer.args.world_size == 1 else f"{fingerprint}:{trainer.args.world_size}"
    trainer.fingerprint = resumable
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(ProgressCallback(on_log, trainer.args.learning_rate))
    if trainer.is_world_process_zero():
        last_checkpoint(out, resumable)  # removes unusable checkpoints
    trainer.accelerator.wait_for_everyone()
    checkpoint = last_checkpoint(out, resumable)
    started = time.monotonic()
    with quiet_training(), explained(out):
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        # A resumed training writes the same bytes: keys in a checkpoint's order, and without TRL's count of tokens, which starts anew.
        history = [{k: v for k, v in sorted(e.items()) if k != "num_tokens"} for e in trainer.state.log_history if "loss" in e]
        # with sharded weights, every process has to contribute its shard
        whole = trainer.accelerator.get_state_dict(trainer.model) if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled else None
        if trainer.is_world_process_zero():
            trainer.accelerator.unwrap_model(trainer.model).save_pretrained(out, state_dict=whole, selected_adapters=["default"])
            tokenizer.save_pretrained(out)
            write_records(out / HISTORY, history)
    trainer.accelerator.wait_for_everyone()
    last = {k: float(v) for k, v in history[-1].items() if k not in ("epoch", "step")}
    return TrainResult(
        steps=trainer.state.global_step,
        examples=len(trainer.train_dataset),
        dropped=dropped,
        metrics={**last, "mean_loss": sum(h["loss"] for h in history) / len(history)},
        seconds=time.monotonic() - started,
        resumed_from=0 if checkpoint is None else int(checkpoint.name.rpartition("-")[2]),
    )


def finish(out: Path, fingerprint: str, facts: CardFacts) -> None:
    """Write the model card and mark `out` as finished, on rank 0 while the other ranks wait. Nothing is written to it afterwards."""
    from accelerate import PartialState

    if is_first_process():
        write_card(out, facts)
        mark_finished(out, fingerprint, facts.result)
    PartialState().wait_for_everyone()


def begin(out: Path, fingerprint: str) -> TrainResult | None:
    """Return the result of this training if it has finished in `out`.

    Otherwise create the folder, remove the marker of another finished training, select this process's GPU, and return None.
    """
    import torch

    if (done := finished_result(out, fingerprint)) is not None:
        if is_first_process():
            remove_checkpoints(out)  # left by a training that was killed before it could remove them
        return done
    try:
        out.mkdir(parents=True, exist_ok=True)
        if is_first_process():
            (out / FINISHED).unlink(missing_ok=True)
    except OSError as e:
        raise disk_error(e, out) from e
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    return None


def process_count() -> int:
    """Return the number of processes that train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first_process() -> bool:
    """Whether this process is rank 0, which writes all files."""
    return int(os.environ.get("RANK", "0")) == 0


def float_trained_weights(model: Any) -> Any:
    """Convert all trainable weights to float32. Returns the model."""
    import torch

    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.float32)
    return model


@contextlib.contextmanager
def quiet_training() -> Iterator[None]:
    """Hide the libraries' progress bars, advice and deprecation warnings, which a user can't act on, for the block."""
    import datasets

    from cai.models.local.quiet import quiet_transformers

    hidden = datasets.are_progress_bars_disabled()
    loggers = [logging.getLogger(name) for name in ("bitsandbytes", "accelerate", "trl", "peft")]
    levels = [logger.level for logger in loggers]
    datasets.disable_progress_bars()
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with quiet_transformers(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if not hidden:
            datasets.enable_progress_bars()


@contextlib.contextmanager
def explained(out: Path) -> Iterator[None]:
    """Turn any library's out-of-memory or full-disk exception into an error that says what to do."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError as e:
        raise TrainingError(
            f"out of memory on the accelerator ({str(e).splitlines()[0]}).\n"
            "Fix: halve batch_size and double gradient_accumulation, set gradient_checkpointing: true, lower max_length, or use "
            "precision: nf4"
        ) from e
    except StoreError:
        raise
    except OSError as e:
        raise disk_error(e, out) from e
    except Exception as e:  # torch and safetensors write with their own exception types
        if any(sign in str(e) for sign in ("No space left", "PytorchStreamWriter failed", "unexpected pos")):
            raise disk_error(OSError(errno.ENOSPC, "no space left"), out) from e
        raise


def _check(trainer: Any) -> None:
    trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    if trained == 0:
        raise TrainingError(
            "no weight of the model is trainable.\nFix: check lora.target_modules and lora.layers against the model's layers"
        )
    check_processes(trainer.args.world_size)


def check_processes(seen: int) -> None:
    """Raise `TrainingError` if the started processes don't form one process group. `seen`: size of this process's group."""
    started = process_count()
    if started != seen:
        raise TrainingError(
            f"{started} processes were started, but the process group has {seen}: each process would train alone.\n"
            "Fix: start with `torchrun --nproc_per_node N`; on CPUs set ACCELERATE_USE_CPU=1"
        )
