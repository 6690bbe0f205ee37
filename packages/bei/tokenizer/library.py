"""The library's tokenizer, read from its file and adapted to the checkpoint's other files."""

import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from tokenizers import AddedToken
from tokenizers import Tokenizer as Library
from tokenizers.models import Unigram
from tokenizers.normalizers import BertNormalizer

from bei.architectures.spec import EncoderSpec
from bei.checkpoint.colbert import LateInteraction
from bei.checkpoint.texts import Casing, Specials
from bei.errors import SetupError
from bei.tokenizer import limits, trial
from bei.tokenizer.template import Template

_CASING = ("clean_text", "handle_chinese_chars", "strip_accents", "lowercase")


def check_specials(templates: Sequence[Template], mask: int, spec: EncoderSpec) -> None:
    """Raises SetupError if a special or padding token has no embedding."""
    for template in templates:
        ids = [mask, *(id for part in template.fixed for id in part)]
        types = [*template.body_types, *(kind for part in template.fixed_types for kind in part)]
        if max(ids) >= spec.vocab_size or max(types, default=0) >= max(1, spec.type_count):
            raise SetupError("tokenizer.json puts tokens or types around a text for which the model has no embedding")


def load(file: str, casing: Casing) -> Library:
    """Raises SetupError for one that would take much memory, before it reads a text."""
    content = Path(file).read_bytes()
    if not limits.is_plain(content):
        trial.try_first(file)
    library = Library.from_buffer(content)
    limits.check(library)
    own, stated = library.normalizer, {name: of for name, of in asdict(casing).items() if of is not None}
    if isinstance(own, BertNormalizer) and stated:
        library.normalizer = BertNormalizer(**{name: getattr(own, name) for name in _CASING} | stated)
    library.no_truncation()
    library.no_padding()
    return library


def ends(library: Library, specials: Specials) -> tuple[list[int], list[int]]:
    """The ids to put before and after a text, if the library does not put them there itself."""
    ids = library.encode("a").ids
    found = []
    for token, place in ((specials.first, 0), (specials.last, -1)):
        id = library.token_to_id(token) if token else None
        if token and id is None:
            raise SetupError("tokenizer_config.json adds a token that tokenizer.json lacks; save the tokenizer again")
        found.append([] if id is None or ids[place] == id else [id])
    return found[0], found[1]


def unknown_id(library: Library) -> int | None:
    """The id of the unknown token."""
    model = library.model
    if isinstance(model, Unigram):
        found = re.match(r"Unigram\(unk_id=(\d+)", str(model))
        return int(found[1]) if found else None
    return library.token_to_id(model.unk_token) if model.unk_token is not None else None


def vocabulary(library: Library, size: int) -> list[str]:
    tokens = {id: token for token, id in library.get_vocab(with_added_tokens=True).items()}
    return [tokens.get(id, "") for id in range(size)]


def keep_whole(library: Library, markers: Sequence[str]) -> None:
    """Read markers such as `[unused0]` as one token (sentence-transformers,
    MultiVectorEncoder._register_prefix_tokens)."""
    for marker in markers:
        whole = next((part for part in (marker, *marker.split()[:1]) if library.token_to_id(part) is not None), None)
        if whole is not None and library.encode(whole, add_special_tokens=False).tokens != [whole]:
            library.add_special_tokens([AddedToken(whole, normalized=False, special=True)])


def mask_id(library: Library, late: LateInteraction) -> int:
    """Raises SetupError if queries are padded and the vocabulary lacks the padding token."""
    found = library.token_to_id(late.mask or "[MASK]")
    if found is None and late.expansion:
        raise SetupError(f"query expansion needs the token {late.mask or '[MASK]'}, which tokenizer.json lacks")
    return found or 0


def ids_of(library: Library, tokens: Sequence[str]) -> list[int]:
    return [id for id in map(library.token_to_id, tokens) if id is not None]
