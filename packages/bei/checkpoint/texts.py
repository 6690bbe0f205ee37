"""How a checkpoint's texts are read: prompts, special tokens, casing, length."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from bei.architectures.spec import EncoderSpec
from bei.checkpoint.modules import read_json, special_token
from bei.checkpoint.options import max_length
from bei.errors import SetupError, short

_BERT_TOKENIZERS = ("BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer", "MPNetTokenizer")
_OBEDIENT = ("LlamaTokenizer", "CodeLlamaTokenizer", "GemmaTokenizer", "CohereTokenizer")
_LONGEST_PROMPT = 1 << 14  # characters
_NO_LIMIT = 1_000_000  # tokenizers without a length write 1e30 into model_max_length


@dataclass(frozen=True)
class Prompts:
    """Texts put before an input, by name (config_sentence_transformers.json). `default` names the one for requests that
    name none. `before_pairs`: they also go before the first text of a pair, as in CrossEncoder. `adapter`: the only
    task that the weights are for, of a checkpoint with an adapter for each."""

    texts: Mapping[str, str] = field(default_factory=dict)
    default: str | None = None
    before_pairs: bool = False
    adapter: str | None = None


@dataclass(frozen=True)
class Specials:
    """Tokens at the beginning and the end of a text."""

    first: str | None = None
    last: str | None = None


NO_SPECIALS = Specials()


@dataclass(frozen=True)
class Casing:
    """A BERT tokenizer's normalizer, as tokenizer_config.json states it; None for what it does not state."""

    lowercase: bool | None = None
    strip_accents: bool | None = None
    handle_chinese_chars: bool | None = None


AS_STATED = Casing()
"""As tokenizer.json has it."""


Reading = Literal["with specials", "bare", "known"]
"""Whether special tokens go around a text; `known`: tokens that the vocabulary lacks are left out, too."""


def check_prompts(prompts: Prompts) -> None:
    """Raises SetupError for a long prompt: it is put before each text of a request."""
    for name, text in prompts.texts.items():
        if len(text) > _LONGEST_PROMPT:
            raise SetupError(
                f"config_sentence_transformers.json: the prompt {short(name)} has {len(text)} characters; at most "
                f"{_LONGEST_PROMPT} are read"
            )


def reads_types(folder: Path) -> bool:
    """Whether the model was trained with token types; tokenizer.json alone does not say."""
    names = read_json(folder / "tokenizer_config.json").get("model_input_names")
    return names is None or "token_type_ids" in names


def max_tokens(folder: Path, limits: Mapping[str, Any], spec: EncoderSpec, max_num_tokens: int) -> int:
    """The smallest of max_seq_length (else the tokenizer's model_max_length), the positions, and max_num_tokens."""
    config = read_json(folder / "tokenizer_config.json")
    stated = max_length(limits) or config.get("model_max_length", config.get("max_len"))
    stated = int(stated) if stated and stated < _NO_LIMIT else spec.max_tokens
    return min(stated, spec.max_tokens, max_num_tokens)


def casing(folder: Path) -> Casing:
    """The casing of transformers' BERT tokenizers. Tokenizers of other classes read tokenizer.json alone."""
    config = read_json(folder / "tokenizer_config.json")
    if str(config.get("tokenizer_class") or "BertTokenizer").removesuffix("Fast") not in _BERT_TOKENIZERS:
        return Casing()
    return Casing(*(config.get(key) for key in ("do_lower_case", "strip_accents", "tokenize_chinese_chars")))


def added_specials(folder: Path) -> Specials:
    """The tokens that flags of tokenizer_config.json add beside those of tokenizer.json.

    transformers 4 obeyed the flags for the tokenizers of Llama, Code Llama, Gemma and Cohere, with which e5-mistral and
    its kin were trained, and so does a tokenizer of the repository's own, as gte-Qwen2's. For other classes, and in
    transformers 5 for all, tokenizer.json alone decides.
    """
    config = read_json(folder / "tokenizer_config.json")
    name = str(config.get("tokenizer_class") or _OBEDIENT[0]).removesuffix("Fast")
    if name not in _OBEDIENT and "auto_map" not in config:
        return NO_SPECIALS
    ends = (special_token(folder, f"{end}_token") if config.get(f"add_{end}_token") else None for end in ("bos", "eos"))
    return Specials(*ends)
