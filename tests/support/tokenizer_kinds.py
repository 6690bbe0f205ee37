"""Tokenizers of every kind that the library has, trained on a few sentences."""

from collections.abc import Callable
from functools import cache

from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from tests.support.tiny_models import word_pieces

SENTENCES = [
    "The cat sat on the mat, and then it ran under an old tree. It's 12345 miles; don't ask!",
    "Ein großer Fluß fließt, naïve café, Ünïcödé; ǅ ﬁne İstanbul ΣΑΣ",
    "日本語の文章です。これは長い文。中文没有空格\uff0c也没有停顿。",
    "def f(x):\n    return x ** 2  # spaces\n\n\n\tif x:\r\n        pass",
    "aaaa aaaaaaaa abab abababab     spaces        more",
    "\U0001f600\U0001f468‍\U0001f469‍\U0001f467 \U0001f1e9\U0001f1ea\U0001f1eb\U0001f1f7 é ́ ํา",
]
GPT4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


def _trained(library: Tokenizer, trainer: trainers.Trainer) -> Tokenizer:
    library.train_from_iterator(SENTENCES * 3, trainer)
    return library


def _pairs(**options) -> trainers.BpeTrainer:
    return trainers.BpeTrainer(vocab_size=600, special_tokens=["<unk>", "<s>"], show_progress=False, **options)


def _unigrams() -> trainers.UnigramTrainer:
    return trainers.UnigramTrainer(
        vocab_size=250, special_tokens=["<unk>", "<s>"], unk_token="<unk>", show_progress=False
    )


def _byte_pairs(*, prefix: bool = False, pattern: str | None = None, ignore_merges: bool = False) -> Tokenizer:
    library = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    if pattern:
        splits = [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
        library.pre_tokenizer = pre_tokenizers.Sequence(splits)
    return _trained(library, _pairs(initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))


def _characters_with_ends() -> Tokenizer:
    """openai-gpt's: a mark at the end of each word."""
    library = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    library.normalizer, library.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    return _trained(library, _pairs(end_of_word_suffix="</w>"))


def _llama(*, fuse: bool) -> Tokenizer:
    """There are no words: whitespace is an ordinary character."""
    library = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=fuse))
    library.pre_tokenizer = pre_tokenizers.Metaspace(split=True)
    library = _trained(library, _pairs())
    library.pre_tokenizer = None
    library.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return library


def _gemma() -> Tokenizer:
    library = _llama(fuse=True)
    library.normalizer = normalizers.Replace(" ", "▁")
    library.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    return library


def _unigram(*, split: bool, scheme: str = "always", normalizer: normalizers.Normalizer | None = None) -> Tokenizer:
    library = Tokenizer(models.Unigram())
    library.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=True)
    library.normalizer = normalizer or normalizers.NFKC()
    library = _trained(library, _unigrams())
    library.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=split)
    return library


def _xlm_roberta() -> Tokenizer:
    collapsed = normalizers.Sequence(
        [normalizers.Nmt(), normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " "), normalizers.Strip()]
    )
    library = _unigram(split=True, normalizer=collapsed)
    library.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    return library


def _words() -> Tokenizer:
    library = Tokenizer(models.WordLevel(unk_token="<unk>"))
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(special_tokens=["<unk>", "<s>"], vocab_size=60, show_progress=False)
    return _trained(library, trainer)


def _with_added_tokens() -> Tokenizer:
    library = _byte_pairs()
    library.add_tokens(["ab", "ba", "cat sat", AddedToken("mat", single_word=True), AddedToken("<m>", lstrip=True)])
    library.add_tokens([AddedToken("<r>", rstrip=True), AddedToken("ÉÉ", normalized=True)])
    return library


def _pieces_with_added_tokens() -> Tokenizer:
    library = word_pieces()
    library.add_tokens(["ab", "ba", AddedToken("mat", single_word=True), AddedToken("<m>", lstrip=True, rstrip=True)])
    return library


def _modernbert() -> Tokenizer:
    library = _byte_pairs(prefix=True)
    library.normalizer = normalizers.NFC()
    return library


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "BERT": word_pieces,
    "BERT with added tokens": _pieces_with_added_tokens,
    "GPT-2": _byte_pairs,
    "GPT-2 with added tokens": _with_added_tokens,
    "ModernBERT": _modernbert,
    "GPT-4": lambda: _byte_pairs(pattern=GPT4),
    "Llama 3": lambda: _byte_pairs(pattern=GPT4, ignore_merges=True),
    "openai-gpt": _characters_with_ends,
    "Llama 2": lambda: _llama(fuse=True),
    "Llama 2 without fused unknowns": lambda: _llama(fuse=False),
    "Gemma": _gemma,
    "T5": lambda: _unigram(split=True),
    "T5 legacy": lambda: _unigram(split=True, scheme="first"),
    "Unigram without words": lambda: _unigram(split=False),
    "XLM-RoBERTa": _xlm_roberta,
    "words": _words,
}


@cache
def kind(name: str) -> Tokenizer:
    return KINDS[name]()
