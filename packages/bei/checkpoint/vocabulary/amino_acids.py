"""ESM's vocab.txt: every token of it is found in a text wherever it stands, and other words are unknown."""

from tokenizers import AddedToken, Regex
from tokenizers import Tokenizer as Library
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split

from bei.checkpoint.vocabulary.draft import Draft, Files, Kind, Named, around, check_tokens, check_unknown, text_of
from bei.checkpoint.vocabulary.stated import Stated

_SPACES = Regex(r"[\s\x1c-\x1f]+")
"""The characters at which Python splits words: Unicode's, and four controls."""


def _draft(files: Files, stated: Stated, named: Named) -> Draft:
    vocab = {line.strip(): id for id, line in enumerate(text_of(files, "vocab.txt").splitlines())}
    check_tokens("vocab.txt", vocab)
    check_unknown("vocab.txt", vocab, named["unk_token"])
    library = Library(WordLevel(vocab, unk_token=str(named["unk_token"])))
    library.pre_tokenizer = Split(_SPACES, "removed")
    specials = set(map(str, named.values()))
    library.add_tokens([AddedToken(token, normalized=False, special=token in specials) for token in vocab])
    return Draft(library)


_NAMED = {f"{name}_token": f"<{name}>" for name in ("unk", "cls", "pad", "mask", "eos")}
ESM = Kind(("vocab.txt",), _draft, _NAMED, around("{cls} $A {eos}", "{cls} $A {eos} $B {eos}"))
