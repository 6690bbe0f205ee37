"""Prefixes that training frameworks leave in the names of a model's tensors, and tensors that they leave beside them.
A tensor that is missing then, or that nothing accounts for, stays an error."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from bei.errors import SetupError, short

_WRAPPER = r"(?:module|_orig_mod|_fsdp_wrapped_module|auto_model|0|encoder|model|base_model)\."
"""The modules that DataParallel, torch.compile, FSDP, sentence-transformers and training scripts put around a model."""

LEFTOVER = re.compile(
    r"(.*\.)?((position_ids|token_type_ids|inv_freq|masked_bias|num_batches_tracked)$|rotary_emb\.)"  # computed
    r"|(loss|loss_fct|loss_fn|loss_function|criterion|optimizer|lr_scheduler|ema)\."
)
"""Tensors that inference does not use: buffers, which are computed and not learned, and those of training."""


def bare_names(names: Iterable[str], first: str, prefixes: tuple[str, ...], folder: Path) -> Mapping[str, str]:
    """The name of each tensor without the prefix of its family, one of `prefixes`, and without any wrapper. The name
    `first`, of the token embeddings, shows both. Raises SetupError if there is none of it, or several."""
    names = list(names)
    prefix = next((prefix for prefix in prefixes if f"{prefix}{first}" in names), None)
    if prefix is not None:
        return {name: name.removeprefix(prefix) for name in names}
    wrapped = re.compile(rf"(?P<wrapper>(?:{_WRAPPER})*)(?:{'|'.join(map(re.escape, prefixes))}){re.escape(first)}")
    found = [match for match in map(wrapped.fullmatch, names) if match]
    if not found:
        raise SetupError(f"{folder}: no tensor {short(first)} in its weights; is config.json's model_type right?")
    if len(found) > 1:
        several = " and ".join(short(match[0]) for match in found[:2])
        raise SetupError(f"{folder}: its weights hold {several}; which of them is the model? Remove the other one")
    (match,) = found
    whole, wrapper = match[0].removesuffix(first), match["wrapper"]
    return {name: name.removeprefix(whole if name.startswith(whole) else wrapper) for name in names}
