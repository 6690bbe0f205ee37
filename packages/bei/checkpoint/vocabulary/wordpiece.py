"""vocab.txt: BERT's WordPiece, one token a line."""

import logging

from tokenizers import AddedToken
from tokenizers import Tokenizer as Library
from tokenizers.decoders import WordPiece as Decoder
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from bei.checkpoint.vocabulary.draft import (
    Draft,
    Files,
    Kind,
    Named,
    around,
    as_roberta,
    check_tokens,
    check_unknown,
    text_of,
)
from bei.checkpoint.vocabulary.stated import Stated, Token

log = logging.getLogger("bei")

_SPACES = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
"""Unicode's White_Space, which the library strips from the end of a line. Python's isspace has four controls more."""

_WITHOUT_EFFECT = (("never_split", None), ("do_basic_tokenize", True), ("clean_text", True))
"""Options of the tokenizers in Python, and the value that changes nothing."""


def _draft(files: Files, stated: Stated, named: Named) -> Draft:
    for key, usual in _WITHOUT_EFFECT:
        if stated.options.get(key, usual) not in (usual, []):
            log.warning("tokenizer_config.json: %s has no effect, as in transformers' tokenizers of version 5", key)
    lines = text_of(files, "vocab.txt").split("\n")
    vocab = {line.rstrip(_SPACES): id for id, line in enumerate(lines if lines[-1] else lines[:-1])}
    check_tokens("vocab.txt", vocab)
    check_unknown("vocab.txt", vocab, named["unk_token"])
    library = Library(WordPiece(vocab, unk_token=str(named["unk_token"])))
    library.normalizer = BertNormalizer(
        clean_text=True,
        handle_chinese_chars=bool(stated.flag("tokenize_chinese_chars", True)),
        strip_accents=stated.flag("strip_accents", None),
        lowercase=bool(stated.flag("do_lower_case", True)),
    )
    library.pre_tokenizer = BertPreTokenizer()
    library.decoder = Decoder(prefix="##")
    return Draft(library)


def _mpnet_token(name: str, text: str) -> Token:
    return AddedToken(text, lstrip=name == "mask_token")


_NAMED = {f"{name}_token": f"[{name.upper()}]" for name in ("unk", "sep", "pad", "cls", "mask")}
BERT = Kind(("vocab.txt",), _draft, _NAMED, around("{cls}:0 $A:0 {sep}:0", "{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1"))
MPNET = Kind(
    ("vocab.txt",),
    _draft,
    {
        **{"bos_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "cls_token": "<s>"},
        **{"unk_token": "[UNK]", "pad_token": "<pad>", "mask_token": "<mask>"},
    },
    as_roberta(trim_offsets=True, prefix_space=False),
    _mpnet_token,
)
