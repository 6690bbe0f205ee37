"""sentencepiece models of unigrams: XLM-RoBERTa, CamemBERT, ALBERT, T5, XLNet, DeBERTa v2."""

from collections.abc import Sequence
from functools import partial

from tokenizers import AddedToken, Regex, decoders, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Library
from tokenizers.models import Unigram
from tokenizers.normalizers import Normalizer
from tokenizers.pre_tokenizers import Metaspace, PreTokenizer, WhitespaceSplit

from bei.checkpoint.vocabulary import sentencepiece
from bei.checkpoint.vocabulary.draft import Draft, Files, Kind, Named, around
from bei.checkpoint.vocabulary.sentencepiece import Model
from bei.checkpoint.vocabulary.stated import Stated, Token
from bei.errors import SetupError, short

Scored = list[tuple[str, float]]
_QUOTES = (("``", '"'), ("''", '"'))
_MOST_EXTRA_IDS = 10_000


def only_file(files: Files) -> tuple[Model, str]:
    ((name, content),) = files.items()
    return sentencepiece.read(content, name), name


def specials_of(model: Model) -> list[Token]:
    """Control symbols are special tokens, and the user's own symbols are added ones."""
    wanted = (sentencepiece.CONTROL, sentencepiece.USER_DEFINED)
    return [
        AddedToken(piece.text, normalized=False, special=piece.type == sentencepiece.CONTROL)
        for piece in model.pieces
        if piece.type in wanted
    ]


def scored(model: Model, first: int = 0) -> Scored:
    return [(piece.text, piece.score) for piece in model.pieces[first:]]


def _around_pieces(model: Model, named: Named, before: Sequence[str], first: int, after: Sequence[str]) -> Scored:
    """fairseq's order: its own special tokens, then the pieces without theirs. A name stands for a special token."""

    def zero(name: str) -> tuple[str, float]:
        return str(named[f"{name}_token"]) if f"{name}_token" in named else name, 0.0

    return [*map(zero, before), *scored(model, first), *map(zero, after)]


def _unigram(model: Model, vocab: Scored, unknown: int, normalizer: Normalizer | None, splitter: PreTokenizer) -> Draft:
    if model.type != sentencepiece.UNIGRAM:
        raise SetupError("the sentencepiece model is BPE; a model of unigrams is expected for this tokenizer_class")
    library = Library(Unigram(vocab, unk_id=unknown, byte_fallback=False))
    if normalizer is not None:
        library.normalizer = normalizer
    library.pre_tokenizer = splitter
    return Draft(library, additional=specials_of(model))


def charsmap(model: Model) -> list[Normalizer]:
    return [normalizers.Precompiled(model.charsmap)] if model.charsmap else []


def _words(scheme: str = "always") -> PreTokenizer:
    return pre_tokenizers.Sequence([WhitespaceSplit(), Metaspace(prepend_scheme=scheme)])


def _prefix(stated: Stated, otherwise: str = "never") -> str:
    return "always" if stated.flag("add_prefix_space", True) else otherwise


def _only(found: list[Normalizer]) -> Normalizer | None:
    return found[0] if found else None


def _xlm_roberta(files: Files, stated: Stated, named: Named) -> Draft:
    model, _ = only_file(files)
    vocab = _around_pieces(model, named, ("bos", "pad", "eos", "unk"), 3, ("mask",))
    return _with_decoder(_unigram(model, vocab, 3, _only(charsmap(model)), _words(_prefix(stated))), _prefix(stated))


def _camembert(files: Files, stated: Stated, named: Named) -> Draft:
    model, _ = only_file(files)
    vocab = _around_pieces(model, named, ("<s>NOTUSED", "pad", "</s>NOTUSED", "unk", "<unk>NOTUSED"), 1, ("mask",))
    vocab[4] = (vocab[4][0], -100.0)
    return _with_decoder(_unigram(model, vocab, 3, _only(charsmap(model)), _words(_prefix(stated))), _prefix(stated))


def _with_decoder(draft: Draft, scheme: str) -> Draft:
    draft.library.decoder = decoders.Metaspace(prepend_scheme=scheme)
    return draft


def _extra_ids(stated: Stated) -> int:
    count = stated.options.get("extra_ids", 100)
    if type(count) is not int or not 0 <= count <= _MOST_EXTRA_IDS:
        raise SetupError(f"tokenizer_config.json: extra_ids is {short(count)}; it must be 0 to {_MOST_EXTRA_IDS}")
    return count


def _t5(files: Files, stated: Stated, named: Named) -> Draft:
    model, _ = only_file(files)
    return _with_extra_ids(model, stated, _only(charsmap(model)), _words())


def _umt5(files: Files, stated: Stated, named: Named) -> Draft:
    """As transformers' T5Converter: runs of spaces are marked, and other whitespace is kept."""
    model, _ = only_file(files)
    spaces = [normalizers.Strip(left=False, right=True), normalizers.Replace(Regex(" {2,}"), "▁")]
    return _with_extra_ids(model, stated, normalizers.Sequence([*charsmap(model), *spaces]), Metaspace())


def _with_extra_ids(model: Model, stated: Stated, normalizer: Normalizer | None, splitter: PreTokenizer) -> Draft:
    """With the sentinels of T5's own task, the last one first."""
    names: list[Token] = [f"<extra_id_{i}>" for i in range(_extra_ids(stated))]
    vocab = [*scored(model), *((str(name), 0.0) for name in reversed(names))]
    library = _unigram(model, vocab, model.unk_id, normalizer, splitter).library
    return _with_decoder(Draft(library, additional=[*specials_of(model), *names]), "always")


def _accents(stated: Stated, *, lowercase: bool, may_keep: bool) -> list[Normalizer]:
    """The rules of ALBERT and XLNet before the model's own."""
    found: list[Normalizer] = [normalizers.Replace(*pair) for pair in _QUOTES]
    if not (may_keep and stated.flag("keep_accents", False)):
        found += [normalizers.NFKD(), normalizers.StripAccents()]
    return [*found, normalizers.Lowercase()] if stated.flag("do_lower_case", lowercase) else found


def _albert(files: Files, stated: Stated, named: Named) -> Draft:
    model, _ = only_file(files)
    rules = normalizers.Sequence([*_accents(stated, lowercase=True, may_keep=True), *charsmap(model)])
    return _with_decoder(_unigram(model, scored(model), 1, rules, _words(_prefix(stated))), _prefix(stated))


def _xlnet(files: Files, stated: Stated, named: Named) -> Draft:
    model, _ = only_file(files)
    rules = normalizers.Sequence([*_accents(stated, lowercase=False, may_keep=False), *charsmap(model)])
    return _with_decoder(_unigram(model, scored(model), model.unk_id, rules, _words()), "always")


def _deberta_v2(files: Files, stated: Stated, named: Named) -> Draft:
    """Its rules stand in place of the model's own."""
    model, _ = only_file(files)
    unknown = (str(named["unk_token"]), 0.0)
    vocab = scored(model)
    rules: list[Normalizer] = [normalizers.Lowercase()] if stated.flag("do_lower_case", False) else []
    rules += [normalizers.Replace(Regex(r"\s{2,}|[\n\r\t]"), " "), normalizers.NFC()]
    rules.append(normalizers.Strip(left=False, right=True))
    marks: list[PreTokenizer] = [pre_tokenizers.Punctuation("isolated")] if stated.flag("split_by_punct", False) else []
    splitter = pre_tokenizers.Sequence([*marks, Metaspace(prepend_scheme=_prefix(stated, "first"))])
    id = vocab.index(unknown) if unknown in vocab else model.unk_id
    return _with_decoder(_unigram(model, vocab, id, normalizers.Sequence(rules), splitter), _prefix(stated, "first"))


def _big_bird(files: Files, stated: Stated, named: Named) -> Draft:
    """Its rules stand in place of the model's own."""
    model, _ = only_file(files)
    unknown, vocab = (str(named["unk_token"]), 0.0), scored(model)
    if unknown not in vocab:
        raise SetupError(f"the sentencepiece model lacks {short(unknown[0])}, the token of unknown words")
    splitter = Metaspace(prepend_scheme=_prefix(stated))
    nothing = normalizers.Strip(left=False, right=False)
    spaces = normalizers.Sequence([nothing, normalizers.Replace(Regex(" {2,}"), "▁")])
    return _with_decoder(_unigram(model, vocab, vocab.index(unknown), spaces, splitter), _prefix(stated))


def _normalized(name: str, text: str) -> Token:
    return AddedToken(text, lstrip=name == "mask_token")


def _stripping(name: str, text: str, **flags: bool) -> Token:
    return AddedToken(text, lstrip=True, **flags) if name == "mask_token" else text


_MARKED: dict[str, Token | None] = {
    **{"bos_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "cls_token": "<s>"},
    **{"unk_token": "<unk>", "pad_token": "<pad>", "mask_token": "<mask>"},
}
_BRACKETED: dict[str, Token | None] = {
    **{"bos_token": "[CLS]", "eos_token": "[SEP]", "sep_token": "[SEP]", "cls_token": "[CLS]"},
    **{"unk_token": "[UNK]", "pad_token": "[PAD]", "mask_token": "[MASK]"},
}
_ENDS, _PAIRS = "{bos} $A {eos}", "{bos} $A {eos} {eos} $B {eos}"
_BERT = around("{cls}:0 $A:0 {sep}:0", "{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1")
_SENTENCES = around("$A {eos}", "$A {eos} $B {eos}")
_T5_NAMED: dict[str, Token | None] = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}

XLM_ROBERTA = Kind(("sentencepiece.bpe.model",), _xlm_roberta, _MARKED, around(_ENDS, _PAIRS))
CAMEMBERT = Kind(
    ("sentencepiece.bpe.model",), _camembert, _MARKED, around(_ENDS, _PAIRS), partial(_stripping, special=True)
)
T5 = Kind(("spiece.model",), _t5, _T5_NAMED, _SENTENCES)
UMT5 = Kind(("spiece.model",), _umt5, _T5_NAMED, _SENTENCES)
ALBERT = Kind(("spiece.model",), _albert, {**_BRACKETED, "unk_token": "<unk>", "pad_token": "<pad>"}, _BERT)
XLNET = Kind(
    ("spiece.model",),
    _xlnet,
    {**_MARKED, "sep_token": "<sep>", "cls_token": "<cls>"},
    around("$A:0 {sep}:0 {cls}:2", "$A:0 {sep}:0 $B:1 {sep}:1 {cls}:2"),
    _stripping,
)
DEBERTA_V2 = Kind(("spm.model",), _deberta_v2, _BRACKETED, _BERT)
BIG_BIRD = Kind(
    ("spiece.model",),
    _big_bird,
    {**_MARKED, "sep_token": "[SEP]", "cls_token": "[CLS]", "mask_token": "[MASK]"},
    _BERT,
    _normalized,
)
