"""What other trainers call our keys: kohya's scripts, ai-toolkit, OneTrainer, SimpleTuner, and the
scripts of diffusers, peft and transformers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

_STEPS = "learner.steps, which counts optimizer steps"
_BATCH = "learner.global_batch, the samples of an optimizer step"
_AREA = "data.pixel_area, which counts pixels: 1048576 for 1024x1024"

NAMES = {
    "run.name": "output_name run_name job_name project_name experiment_name",
    "run.folder": (
        "output_dir out_dir output_folder save_dir training_folder workspace_dir output_path"
    ),
    "run.seed": "random_seed manual_seed training_seed",
    "run.resume": "resume_from_checkpoint resume_from resume_path",
    "run.overwrite": "overwrite_output_dir",
    "model.base": (
        "pretrained_model_name_or_path model_name_or_path base_model base_model_name "
        "name_or_path model_name pretrained_model checkpoint_path"
    ),
    "model.family": "model_type arch model_family model_flavour",
    "model.dtype": "mixed_precision precision train_dtype torch_dtype weight_dtype",
    "model.quantize": "load_in_4bit load_in_8bit quantization qtype fp8_base base_model_precision",
    "model.attention": (
        "attn_implementation attention_backend attention_mechanism xformers sdpa attn_mode"
    ),
    "model.compile": "torch_compile compile_model",
    "data.source": (
        "train_data_dir instance_data_dir dataset dataset_path datasets dataset_name "
        "image_dir image_folder folder_path data_dir data_root instance_data_root data_path"
    ),
    "data.caption_files": "caption_extension caption_ext",
    "data.columns": "caption_column image_column text_column",
    "data.caption_dropout": "caption_dropout_rate caption_dropout_prob",
    "data.token": "trigger_word trigger instance_token placeholder_token",
    "data.concept_weights": "repeats num_repeats dataset_repeats",
    "data.prior.prompts": "class_prompt class_data_dir reg_data_dir with_prior_preservation",
    "data.prior.count": "num_class_images",
    "data.prior.weight": "prior_loss_weight",
    "data.preservation.class_word": "diff_output_preservation diff_output_preservation_class",
    "data.preservation.weight": "diff_output_preservation_multiplier",
    "data.bucket_multiple": "bucket_reso_steps bucket_step aspect_bucket_alignment",
    "data.context_cache": "cache_latents cache_text_embeddings cache_text_encoder_outputs",
    _AREA: "resolution train_resolution image_size max_resolution width height max_size",
    "method.ema_decay": "ema use_ema ema_rate",
    "lora.rank": "lora_rank network_dim network_rank linear dim r lora_dim",
    "lora.alpha": "lora_alpha network_alpha linear_alpha",
    "lora.init": "network_weights pretrained_lora init_lora lora_path",
    "lora.targets": "target_modules lora_target_modules lora_layers lora_target",
    "lora.dora": "use_dora",
    "lora.kind": "network_type lycoris_algo algo",
    "lora.factor": "lokr_factor decompose_factor",
    "lora.rank_stabilized": "use_rslora rslora",
    "learner.lr": "learning_rate unet_lr transformer_lr base_lr",
    "learner.schedule": "lr_scheduler lr_scheduler_type scheduler_type",
    "learner.warmup_steps": "lr_warmup_steps warmup num_warmup_steps",
    "learner.optimizer": "optimizer_type optim use_8bit_adam",
    "learner.weight_decay": "adam_weight_decay wd",
    "learner.betas": "adam_beta1 adam_beta2 beta1 beta2",
    "learner.eps": "adam_epsilon epsilon",
    "learner.max_grad_norm": "gradient_clip clip_grad_norm grad_clip gradient_clipping",
    "learner.workers": "num_gpus num_processes world_size nproc_per_node n_gpus",
    "learner.micro_batch": (
        "per_device_train_batch_size micro_batch_size batch_size_per_gpu "
        "train_micro_batch_size_per_gpu"
    ),
    "learner.deepspeed": "deepspeed_config zero_stage deepspeed_config_file",
    _STEPS: (
        "steps max_steps max_train_steps train_steps num_steps iterations epochs epoch "
        "num_epochs num_train_epochs max_train_epochs max_epochs"
    ),
    _BATCH: (
        "batch_size train_batch_size total_batch_size global_batch_size effective_batch_size "
        "gradient_accumulation_steps gradient_accumulation grad_accum bs"
    ),
    "checkpoint.every_steps": (
        "save_every save_every_n_steps checkpointing_steps save_steps checkpoint_step_interval"
    ),
    "checkpoint.keep_last": "checkpoints_total_limit save_total_limit max_step_saves_to_keep",
    "preview.prompts": "sample_prompts validation_prompt validation_prompts",
    "preview.every": "sample_every sample_every_n_steps validation_steps",
    "preview.steps": "sample_steps num_inference_steps",
    "preview.samples": "num_samples num_validation_images",
    "trackers": "report_to log_with logger",
}
"""What is suggested, which begins with a key of ours -> how it is called elsewhere."""
_OURS = {name: ours for ours, names in NAMES.items() for name in names.split()}


def ours(name: str, model: type[BaseModel]) -> str | None:
    """What a key is called here that another trainer calls ``name``, or that stands in one section
    of ``model`` alone; None for anything else."""
    plain = name.lower().replace("-", "_")
    if plain in _OURS:
        return _OURS[plain]
    found = [key for key in keys(model) if key.rpartition(".")[2] == plain]
    return found[0] if len(found) == 1 else None


def keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every key of a config, by its whole name."""
    for name, field in model.model_fields.items():
        kind: Any = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from keys(kind, f"{prefix}{name}.")
        else:
            yield prefix + name
