"""Checkpoints whose weights are quantized: float8 with a scale for each matrix or row is read, and other formats are
refused by their names."""

from collections.abc import Mapping
from typing import Any

from bei.errors import SetupError, short

_FORMATS = {
    "gptq": "GPTQ",
    "awq": "AWQ",
    "bitsandbytes": "bitsandbytes",
    "compressed-tensors": "compressed-tensors",
    "modelopt": "ModelOpt",
    "fbgemm_fp8": "FBGEMM",
    "fp8": "fp8 in blocks",
    "mxfp4": "MXFP4",
}
_FLOAT8 = {"compressed-tensors": ("format", "float-quantized"), "modelopt": ("quant_algo", "FP8")}
"""The key and its value that says float8, of the formats of which that is read."""


def check_quantized(config: Mapping[str, Any]) -> None:
    """Raises SetupError for a config.json that names a format that is not read."""
    stated = config.get("quantization_config") or config.get("compression_config")
    if not isinstance(stated, Mapping):
        return
    method = stated.get("quant_method")
    key, float8 = _FLOAT8.get(str(method), ("", None))
    if float8 is not None and stated.get(key) == float8:
        return
    name = _FORMATS.get(str(method), short(method))
    bits = stated.get("bits") or ("4" if stated.get("load_in_4bit") else "8" if stated.get("load_in_8bit") else None)
    detail = f"{short(bits)} bits" if bits else short(stated.get(key)) if key else ""
    raise SetupError(
        f"config.json: quantization_config: the weights are stored as {name}{f' ({detail})' if detail else ''}, which "
        "is not read; take the checkpoint that it was made from (the settings can quantize that one), or fp8 with a "
        "scale for each matrix or row"
    )
