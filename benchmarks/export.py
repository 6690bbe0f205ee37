"""Exports the model for onnxruntime and OpenVINO: python benchmarks/export.py MODEL_FOLDER OUT_FOLDER [--openvino]
(peers' Python); with the flag for OpenVINO alone.

OUT_FOLDER gets model.onnx (fp32); int8.onnx (onnxruntime's graph optimized for BERT, then dynamic int8); infinity/ (the
same, in the place where infinity's optimum engine expects it); fastembed/ (this one, and the optimized graph in fp32);
openvino.xml; and openvino-int8.xml (NNCF's post-training quantization for transformers, on sentences and passages of
STS-B).
"""

import json
import shutil
import sys
from pathlib import Path

import nncf
import numpy as np
import openvino
import torch
from onnx import TensorProto
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.transformers import optimizer
from tokenizers import Tokenizer
from transformers import AutoModel

sys.path.insert(0, str(Path(__file__).parents[1]))
from bei.samples.mixes import text_sets
from bei.samples.stsb import sentences

NAMES = ("input_ids", "attention_mask", "token_type_ids")


def export(folder: Path, out: Path) -> None:
    model = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    model.config.return_dict = False
    example = torch.ones((2, 8), dtype=torch.int64)
    axes = {name: {0: "batch", 1: "tokens"} for name in (*NAMES, "last_hidden_state")}
    torch.onnx.export(
        model, (example,) * 3, str(out / "model.onnx"), input_names=list(NAMES), output_names=["last_hidden_state"],
        dynamic_axes=axes, dynamo=False,
    )  # fmt: skip
    config = json.loads((folder / "config.json").read_text())
    fused = optimizer.optimize_model(
        str(out / "model.onnx"), "bert", num_heads=config["num_attention_heads"], hidden_size=config["hidden_size"]
    )
    fused.save_model_to_file(str(out / "fused.onnx"))
    quantize_dynamic(str(out / "fused.onnx"), str(out / "int8.onnx"), weight_type=QuantType.QInt8, per_channel=True,
                     extra_options={"DefaultTensorType": TensorProto.FLOAT})  # fmt: skip
    shutil.copytree(folder, out / "infinity", ignore=shutil.ignore_patterns("*.safetensors"))
    (out / "infinity" / "onnx").mkdir()
    shutil.copy(out / "int8.onnx", out / "infinity" / "onnx" / "model_quantized.onnx")
    shutil.copytree(out / "infinity", out / "fastembed")
    shutil.copy(out / "fused.onnx", out / "fastembed" / "onnx" / "model.onnx")


def quantize(folder: Path, out: Path) -> None:
    """Quantizes from the torch model: its attention stays one operation, whose mask is not rounded to bytes."""
    source = AutoModel.from_pretrained(folder, attn_implementation="sdpa").eval()
    example = {name: torch.ones((2, 8), dtype=torch.int64) for name in NAMES}
    model = openvino.convert_model(source, example_input=example)
    openvino.save_model(model, out / "openvino.xml", compress_to_fp16=False)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    inputs = [tokenizer.encode(text).ids for text in sentences()[:60] + text_sets()["passage"]]
    ones = {ids: np.ones((1, len(ids)), np.int64) for ids in map(tuple, inputs)}
    dataset = nncf.Dataset(
        [
            {"input_ids": np.array([ids]), "attention_mask": mask, "token_type_ids": 0 * mask}
            for ids, mask in ones.items()
        ]
    )
    preset = nncf.QuantizationPreset.MIXED
    int8 = nncf.quantize(model, dataset, model_type=nncf.ModelType.TRANSFORMER, preset=preset)
    openvino.save_model(int8, out / "openvino-int8.xml", compress_to_fp16=False)


if __name__ == "__main__":
    source, target = Path(sys.argv[1]), Path(sys.argv[2])
    target.mkdir(parents=True, exist_ok=True)
    if "--openvino" not in sys.argv:
        export(source, target)
    quantize(source, target)
