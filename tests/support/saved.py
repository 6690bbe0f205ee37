"""Checkpoints as others save them, LoRA adapters, and the settings that name them."""

import math
from pathlib import Path

import safetensors.torch
import torch
from safetensors.torch import load_file, save_file

from bei.settings import Settings
from tests.support.tiny_models import random_model, save, write_json, write_modules

TARGETS = {
    "bert": ("attention.self.query", "attention.self.value", "intermediate.dense"),
    "modernbert": ("attn.Wqkv", "mlp.Wi"),
    "qwen3": ("self_attn.q_proj", "self_attn.k_proj", "mlp.down_proj"),
}
CONFIG = {"peft_type": "LORA", "task_type": "FEATURE_EXTRACTION", "r": 4, "lora_alpha": 8, "bias": "none"}


def adapter(folder: Path, base: Path, family: str, ranks=None, prefix: str = "", **config) -> dict[str, torch.Tensor]:
    """Writes an adapter for `base`; returns the tensors of the two together, computed plainly."""
    generator = torch.Generator().manual_seed(0)
    ranks, stated = ranks or {}, {**CONFIG, "base_model_name_or_path": str(base), **config}
    worth, stored = load_file(base / "model.safetensors"), {}
    for name, weight in list(worth.items()):
        module = name.removesuffix(".weight")
        if not name.endswith(".weight") or not module.endswith(TARGETS[family]):
            continue
        rank = next((of for key, of in ranks.items() if module.endswith(key)), stated["r"])
        alpha = next((of for key, of in config.get("alpha_pattern", {}).items() if module.endswith(key)), 8)
        a = torch.randn(rank, weight.shape[1], generator=generator) / 8
        b = torch.randn(weight.shape[0], rank, generator=generator) / 8
        stored |= {f"base_model.model.{prefix}{module}.lora_{side}.weight": of for side, of in (("A", a), ("B", b))}
        worth[name] = weight + alpha / (math.sqrt(rank) if config.get("use_rslora") else rank) * (b @ a)
    folder.mkdir(exist_ok=True, parents=True)
    save_file({name: of.contiguous() for name, of in stored.items()}, folder / "adapter_model.safetensors")
    write_json(folder / "adapter_config.json", stated)
    return worth


def settings(source: str, repo: str, tmp_path: Path, secret: str | None = None, **flags) -> Settings:
    repository = {
        "source": source,
        "repo": repo,
        **({"revision": flags.pop("revision")} if "revision" in flags else {}),
    }
    config = {"trt_llm": {"build": {"base_model": "encoder_bert", "checkpoint_repository": repository}}}
    secrets = {"hf_access_token": secret} if secret else {}
    return Settings.load(config, secrets=secrets, environ={}, cache_dir=tmp_path / "cache", **flags)


def without_safetensors(folder: Path) -> None:
    """Tensors of a checkpoint as torch.save writes them, in each of its folders."""
    for file in folder.rglob("*.safetensors"):
        tensors = safetensors.torch.load_file(file)
        file.unlink()
        torch.save(tensors, file.with_name("pytorch_model.bin"))


def with_dense(folder: Path) -> Path:
    save(folder, random_model("bert"), pooling={"pooling_mode": "mean", "embedding_dimension": 48})
    write_modules(folder, {"Transformer": "", "Pooling": "1_Pooling", "Dense": "2_Dense"})
    write_json(folder / "2_Dense" / "config.json", {"in_features": 48, "out_features": 8, "bias": False})
    safetensors.torch.save_file({"linear.weight": torch.rand(8, 48)}, folder / "2_Dense" / "model.safetensors")
    return folder
