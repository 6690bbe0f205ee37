"""sentencepiece models of BPE, whose merges follow from their pieces: Llama, Gemma, and any other (Mistral)."""

import re
from collections.abc import Iterable, Mapping

from tokenizers import Regex, decoders, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Library
from tokenizers.decoders import Decoder
from tokenizers.models import BPE, Unigram
from tokenizers.normalizers import Normalizer, Replace
from tokenizers.pre_tokenizers import Metaspace, PreTokenizer, Split

from bei.checkpoint.vocabulary import ranks, sentencepiece
from bei.checkpoint.vocabulary.draft import Draft, Files, Kind, Named, counted
from bei.checkpoint.vocabulary.sentencepiece import Model
from bei.checkpoint.vocabulary.stated import Stated, Token
from bei.checkpoint.vocabulary.unigrams import charsmap, only_file, scored, specials_of

Merge = tuple[str, str]


def _splits(vocab: Mapping[str, object], pieces: Iterable[str]) -> list[Merge]:
    """The pairs of pieces that make one of the `pieces`. Raises SetupError for too many."""
    found = (
        (piece[:at], piece[at:])
        for piece in pieces
        for at in range(1, len(piece))
        if piece[:at] in vocab and piece[at:] in vocab
    )
    return counted(found, "the sentencepiece model")


def _merges_by_id(vocab: dict[str, int]) -> list[Merge]:
    """In the order of the ids that they make; among those of one, the shorter left side first."""
    merges = _splits(vocab, vocab)
    return sorted(merges, key=lambda pair: (vocab[pair[0] + pair[1]], len(pair[0])))


def _merges_by_score(model: Model, vocab: dict[str, int]) -> list[Merge]:
    """In sentencepiece's own order. Only normal pieces are merged."""
    names = {id: token for token, id in vocab.items()}
    normal = {
        names[id]: (-piece.score, id)
        for id, piece in enumerate(model.pieces)
        if piece.type == sentencepiece.NORMAL and id in names
    }
    return sorted(_splits(normal, normal), key=lambda pair: (*normal[pair[0] + pair[1]], pair))


def _vocab(model: Model) -> dict[str, int]:
    return {piece.text: id for id, piece in enumerate(model.pieces)}


def _decoder(*, bytes_too: bool = True, strips: bool) -> Decoder:
    parts: list[Decoder] = [decoders.Replace("▁", " "), *([decoders.ByteFallback()] if bytes_too else [])]
    if bytes_too or strips:
        parts.append(decoders.Fuse())
    return decoders.Sequence([*parts, decoders.Strip(content=" ", left=1)] if strips else parts)


def _llama(files: Files, stated: Stated, named: Named) -> Draft:
    if ranks.is_ranks(files):
        return ranks.draft(files, stated, named)
    model, _ = only_file(files)
    vocab = _vocab(model)
    space = stated.flag("add_prefix_space", None) is not False
    library = Library(BPE(vocab, _merges_by_id(vocab), fuse_unk=True, byte_fallback=True))
    scheme = ("always" if stated.flag("legacy", False) else "first") if space else "never"
    library.pre_tokenizer = Metaspace(prepend_scheme=scheme, split=False)
    library.decoder = _decoder(strips=space)
    return Draft(library, additional=specials_of(model))


def _gemma(files: Files, stated: Stated, named: Named) -> Draft:
    model, _ = only_file(files)
    vocab, unknown = _vocab(model), str(named["unk_token"])
    library = Library(BPE(vocab, _merges_by_id(vocab), fuse_unk=True, unk_token=unknown, byte_fallback=True))
    library.normalizer = Replace(" ", "▁")
    library.pre_tokenizer = Split(" ", "merged_with_previous")
    library.decoder = _decoder(strips=False)
    return Draft(library, additional=specials_of(model))


def _any(files: Files, stated: Stated, named: Named) -> Draft:
    """By the model's own settings, as sentencepiece reads texts."""
    if ranks.is_ranks(files):
        return ranks.draft(files, stated, named)
    model, _ = only_file(files)
    renamed = _renamed(_vocab(model), stated) if model.type == sentencepiece.BPE else _vocab(model)
    names = {id: token for token, id in renamed.items()}
    own = [
        names[id] for id, piece in enumerate(model.pieces) if piece.type == sentencepiece.USER_DEFINED and id in names
    ]
    library = Library(_model(model, renamed, own=bool(own)))
    library.normalizer = normalizers.Sequence(_rules(model, prefixes_every=stated.options.get("legacy", True)))
    splitters = _splitters(model, own, every=stated.options.get("legacy", True))
    if splitters:
        library.pre_tokenizer = pre_tokenizers.Sequence(splitters)
    library.decoder = _decoder(bytes_too=model.byte_fallback, strips=model.add_dummy_prefix)
    usual: dict[str, Token | None] = {
        f"{name}_token": text for name, text in model.texts.items() if model.ids[name] >= 0
    }
    hidden = {piece.text for piece in model.pieces if piece.type == sentencepiece.USER_DEFINED}
    additional = [token for token in specials_of(model) if str(token) not in hidden]
    return Draft(library, usual, additional, raw_added=model.add_dummy_prefix)


def _renamed(vocab: dict[str, int], stated: Stated) -> dict[str, int]:
    """With the names that added_tokens_decoder gives to placeholders."""
    names = stated.added_by_id
    kept = {token for token, id in vocab.items() if id not in names}
    return {
        (str(names[id]) if id in names and str(names[id]) not in kept else token): id for token, id in vocab.items()
    }


def _model(model: Model, vocab: dict[str, int], *, own: bool) -> BPE | Unigram:
    if model.type == sentencepiece.UNIGRAM:
        return Unigram(scored(model), unk_id=model.unk_id, byte_fallback=model.byte_fallback)
    return BPE(
        vocab,
        _merges_by_score(model, vocab),
        unk_token=model.texts["unk"],
        fuse_unk=True,
        byte_fallback=model.byte_fallback,
        ignore_merges=own,
    )


def _rules(model: Model, *, prefixes_every: object) -> list[Normalizer]:
    rules = charsmap(model)
    if model.remove_extra_whitespaces:
        rules += [Replace(Regex(r"\A +| +\z"), ""), Replace(Regex(" {2,}"), " ")]
    if model.escape_whitespaces:
        rules.append(Replace(" ", "▁"))
    if model.add_dummy_prefix and prefixes_every:
        rules.append(Replace(Regex(r"\A▁"), "▁▁"))  # the splitter adds no prefix to a text that has one
    return rules


def _splitters(model: Model, own: list[str], *, every: object) -> list[PreTokenizer]:
    """A space before the text, or before every part between added tokens; then the user's own symbols."""
    found: list[PreTokenizer] = []
    if model.add_dummy_prefix:
        found.append(Metaspace(prepend_scheme="always" if every else "first", split=False))
    if own:
        pattern = "|".join(re.escape(piece) for piece in sorted(own, key=len, reverse=True))
        found.append(Split(Regex(pattern), "isolated"))
    return found


_FILES = ("tokenizer.model",)
LLAMA = Kind(_FILES, _llama, {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"})
GEMMA = Kind(
    _FILES,
    _gemma,
    {
        **{"unk_token": "<unk>", "bos_token": "<bos>", "eos_token": "<eos>"},
        **{"pad_token": "<pad>", "mask_token": "<mask>"},
    },
)
ANY = Kind(_FILES, _any, {})
