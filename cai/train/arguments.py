"""Convert a recipe's training block into arguments of TRL and PEFT. All defaults are in the recipe."""

import math
import re
from pathlib import Path
from typing import Any

from cai.errors import TrainingError
from cai.models.local.precision import resolved_precision
from cai.recipe import LoraSpec, ModelSpec, TrainSpec
from cai.train.running import process_count


def total_steps(config: TrainSpec, examples: int, processes: int = 1) -> int:
    """Return the number of optimizer steps, counted as in `transformers.Trainer`. `examples`: number of examples, above 0."""
    batches = math.ceil(examples / (config.batch_size * processes))
    return math.ceil(config.epochs * max(1, math.ceil(batches / config.gradient_accumulation)))


def training_arguments(config: TrainSpec, examples: int, checkpoints: Path, seed: int) -> dict[str, Any]:
    """Return the training arguments that all methods share.

    bfloat16 means: base weights in bfloat16, trained weights and optimizer state in float32, forward pass under autocast. Updates of the
    trained weights are smaller than bfloat16's resolution. nf4 is the same over a 4-bit base.

    Args:
        examples: number of examples after filtering, above 0.
        seed: decides the adapter's initial weights and the order of the data.
    """
    import torch

    return {
        "output_dir": str(checkpoints),
        "per_device_train_batch_size": config.batch_size,
        "gradient_accumulation_steps": config.gradient_accumulation,
        "num_train_epochs": config.epochs,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": "linear",
        "warmup_steps": int(config.warmup_fraction * total_steps(config, examples, process_count())),
        "optim": config.optimizer,
        "weight_decay": 0.0,
        "bf16": resolved_precision(config.precision) != "float32",
        "gradient_checkpointing": config.gradient_checkpointing,
        "seed": seed,
        "data_seed": seed,
        "save_strategy": "steps",
        "save_steps": config.save_steps,
        "save_total_limit": 2,  # the last one may be incomplete after a kill
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # `ProgressCallback` must see a loss that is not finite
        "report_to": "none",
        "disable_tqdm": True,
        "push_to_hub": False,
        "use_cpu": not torch.cuda.is_available(),
        "ddp_find_unused_parameters": False,
        "dataloader_pin_memory": torch.cuda.is_available(),
        # the collators of pairs read columns that are not arguments of `forward`
        "remove_unused_columns": False,
    }


def with_new_adapter(model: Any, lora: LoraSpec, *, scorer: bool = False, name: str = "default") -> Any:
    """Return the model with a new LoRA adapter, the only trainable part.

    Args:
        scorer: whether the model is a reward model, whose scalar head is then also trained and saved with the adapter.
        name: name of the adapter, if several share a base model.
    """
    from peft import LoraConfig, get_peft_model

    layers = model.config.get_text_config().num_hidden_layers
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=_linear_names(model) if lora.target_modules == "all-linear" else lora.target_modules.replace(",", " ").split(),
        layers_to_transform=None if lora.layers is None else list(range(max(0, layers - lora.layers), layers)),
        bias="none",
        task_type="SEQ_CLS" if scorer else "CAUSAL_LM",
        modules_to_save=["score"] if scorer else None,
    )
    try:
        return get_peft_model(model, config, adapter_name=name)
    except ValueError as e:
        raise TrainingError(
            f"lora.target_modules: {lora.target_modules!r} matches no module of the model ({e}).\n"
            f"Fix: use all-linear, or some of: {' '.join(_linear_names(model))}"
        ) from e


def target_problem(model: ModelSpec, lora: LoraSpec) -> str:
    """Return what is wrong with `lora.target_modules` for a model, without loading its weights; empty if nothing is."""
    if lora.target_modules == "all-linear":
        return ""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from cai.models.local.folders import resolve_model_path
    from cai.models.local.loading import explained_load
    from cai.models.local.quiet import quiet_transformers

    folder = resolve_model_path(model)
    with quiet_transformers(), explained_load(folder), torch.device("meta"):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=model.trust_remote_code)
        skeleton = AutoModelForCausalLM.from_config(config, trust_remote_code=model.trust_remote_code)
    output = skeleton.get_output_embeddings()
    names = {name: module for name, module in skeleton.named_modules() if name}
    for target in lora.target_modules.replace(",", " ").split():
        found = [module for name, module in names.items() if name == target or name.endswith(f".{target}")]
        if not found or any(module is output for module in found):
            why = (
                "matches no module of the model"
                if not found
                else "is the output layer, from which losses are computed: it can't be adapted"
            )
            return f"{target!r} {why}. Use all-linear, or some of: {' '.join(_linear_names(skeleton))}"
    return ""


def _linear_names(model: Any) -> list[str]:
    """Return the names of the linear modules in a model's layers. PEFT's own `all-linear` can't be limited to some layers."""
    from torch.nn import Linear
    from transformers.pytorch_utils import Conv1D

    numbered = re.compile(r"\.\d+\.")  # model.layers.3.mlp.up_proj; the heads at the top have no number
    return sorted(
        {name.rpartition(".")[2] for name, m in model.named_modules() if isinstance(m, Linear | Conv1D) and numbered.search(name)}
    )
