"""A tokenizer in the making: the library's model with its normalizer and splitter, then its special tokens, then the
template that puts some of them around a text."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import AnyStr

from tokenizers import AddedToken
from tokenizers import Tokenizer as Library
from tokenizers.processors import PostProcessor, RobertaProcessing, TemplateProcessing

from bei.checkpoint.vocabulary.stated import NAMED, Stated, Token
from bei.errors import SetupError, short

MOST_BYTES = 1 << 24  # of a file of a vocabulary; the largest known has 5 MB
MOST_TOKENS, MOST_MERGES = 2_000_000, 4_000_000
MOST_MERGED = 1 << 26  # characters of all merges
_ADDED = 100_000
_LONGEST, _TEXT = 1024, 12_000_000  # characters of a token, bytes of all: the library takes 350 of each

Files = Mapping[str, bytes]
Named = Mapping[str, Token | None]


@dataclass(frozen=True)
class Draft:
    """`named`: special tokens that the vocabulary's file states, before the class's own; `additional`: those without a
    name that the file or the class has; `raw_added`: added tokens are found in a text before it is normalized."""

    library: Library
    named: Named = field(default_factory=dict)
    additional: list[Token] | None = None
    raw_added: bool = False


@dataclass(frozen=True)
class Kind:
    """A class of transformers' tokenizers, as data.

    `files`: the names of its vocabulary's files, of which `draft` makes the model; `named`: its special tokens where
    no file states others; `wrap`: an AddedToken of a name and the string that a file states for it; `template`: what
    goes around texts, None where the flags add_bos_token and add_eos_token alone decide; `always_special`:
    no file can give a special token other rules than the usual ones.
    """

    files: tuple[str, ...]
    draft: Callable[[Files, Stated, Named], Draft]
    named: Named
    template: Callable[[Library, Named, Stated], PostProcessor] | None = None
    wrap: Callable[[str, str], Token] = lambda name, text: text
    always_special: bool = False


def drafted(kind: Kind, files: Files, stated: Stated) -> Library:
    """The tokenizer of a vocabulary. Raises SetupError, and the library's own exceptions."""
    usual = {name: kind.named.get(name) for name in NAMED}
    draft = kind.draft(files, stated, {**usual, **stated.named})
    named = {
        name: kind.wrap(name, token) if isinstance(token, str) else token
        for name, token in {**usual, **draft.named, **stated.named}.items()
    }
    library = draft.library
    library.add_tokens(_tokens(draft, {**named, **stated.own}, stated))
    if kind.always_special:
        listed = [*named.values(), *stated.own.values(), *stated.extra(draft.additional)]
        library.add_tokens([AddedToken(str(token), special=True) for token in listed if token is not None])
    library.post_processor = _around(kind, library, named, stated)
    return library


def _tokens(draft: Draft, named: Named, stated: Stated) -> list[AddedToken]:
    """The tokens to add: each keeps its id in the vocabulary, or gets the next one, in this order."""
    present = draft.library.get_added_tokens_decoder().values()
    same, known = set(map(repr, present)), set(map(str, present))
    added = [_raw(token) if draft.raw_added else token for token in stated.added]
    found: list[Token] = [token for token in added if repr(token) not in same]
    known |= set(map(str, found))
    more = (token for token in (*named.values(), *stated.extra(draft.additional)) if token is not None)
    found += {repr(token): token for token in more if str(token) not in known}.values()
    names = {str(token) for token in named.values() if token is not None}
    if len(found) > _ADDED:
        raise SetupError(f"tokenizer_config.json adds {len(found)} tokens; at most {_ADDED} are read")
    if found:
        check_tokens("tokenizer_config.json", list(map(str, found)))
    return [_added(token, names) for token in found]


def _raw(token: AddedToken) -> AddedToken:
    return AddedToken(**{**token.__getstate__(), "normalized": False})


def _added(token: Token, names: set[str]) -> AddedToken:
    if isinstance(token, str):
        return AddedToken(token, special=True)
    token.special = token.special or str(token) in names
    return token


def _around(kind: Kind, library: Library, named: Named, stated: Stated) -> PostProcessor:
    if kind.template is not None:
        return kind.template(library, named, stated)
    own: PostProcessor | None = library.post_processor
    if own is not None and not {"add_bos_token", "add_eos_token"} & stated.options.keys():
        return own
    ends = [end for end in ("bos", "eos") if stated.flag(f"add_{end}_token", False) and named.get(f"{end}_token")]
    single, second = _side("A", 0, ends), _side("B", 1, ends)
    return around(single, f"{single} {second}")(library, named, stated)


def _side(text: str, kind: int, ends: list[str]) -> str:
    bos, eos = (f"{{{end}}}:{kind}" if end in ends else "" for end in ("bos", "eos"))
    return f"{bos} ${text}:{kind} {eos}".strip()


def around(single: str, pair: str) -> Callable[[Library, Named, Stated], PostProcessor]:
    """A template of names of special tokens in braces."""

    def template(library: Library, named: Named, stated: Stated) -> PostProcessor:
        used = [name for name in ("bos", "eos", "sep", "cls") if f"{{{name}}}" in single + pair]
        specials = {name: id_of(library, named, name) for name in used}
        contents = {name: token for name, (token, _) in specials.items()}
        return TemplateProcessing(
            single=[piece.format(**contents) for piece in single.split()],
            pair=[piece.format(**contents) for piece in pair.split()],
            special_tokens=list(set(specials.values())),
        )

    return template


def as_roberta(trim_offsets: bool | None = None, prefix_space: bool | None = None) -> Callable[..., PostProcessor]:
    """RoBERTa's template, with two separators between texts. None: the flag of tokenizer_config.json."""

    def template(library: Library, named: Named, stated: Stated) -> PostProcessor:
        trim = stated.flag("trim_offsets", True) if trim_offsets is None else trim_offsets
        space = stated.flag("add_prefix_space", False) if prefix_space is None else prefix_space
        return RobertaProcessing(id_of(library, named, "sep"), id_of(library, named, "cls"), bool(trim), bool(space))

    return template


def id_of(library: Library, named: Named, name: str) -> tuple[str, int]:
    """A special token and its id. Raises SetupError if the files take it away."""
    token = named.get(f"{name}_token")
    id = library.token_to_id(str(token))
    if token is None or id is None:
        raise SetupError(
            f"tokenizer_config.json: {name}_token is {short(str(token))}, and goes around each text; name it"
        )
    return str(token), id


def text_of(files: Files, name: str) -> str:
    """Raises SetupError for bytes that are no UTF-8."""
    try:
        return files[name].decode()
    except UnicodeDecodeError as exc:
        raise SetupError(
            f"{PurePath(name).name} is not UTF-8 ({exc.reason} at byte {exc.start}); download it again"
        ) from None


def counted(merges: Iterable[tuple[AnyStr, AnyStr]], name: str) -> list[tuple[AnyStr, AnyStr]]:
    """Raises SetupError for merges that would take gigabytes: long tokens may be parts of one another."""
    found: list[tuple[AnyStr, AnyStr]] = []
    characters = 0
    for left, right in merges:
        found.append((left, right))
        characters += len(left) + len(right)
        if len(found) > MOST_MERGES:
            raise SetupError(f"{name} has more than {MOST_MERGES} merges, the most that are read")
        if characters > MOST_MERGED:
            raise SetupError(f"{name} has merges of more than {MOST_MERGED} characters, the most that are read")
    return found


def check_tokens(name: str, tokens: Mapping[str, object] | list[str]) -> None:
    """Raises SetupError for a vocabulary of which the library would make gigabytes."""
    if not tokens:
        raise SetupError(f"{name} holds no tokens; download it again")
    if len(tokens) > MOST_TOKENS:
        raise SetupError(f"{name} holds {len(tokens)} tokens; at most {MOST_TOKENS} are read")
    longest = max(tokens, key=len)
    if len(longest) > _LONGEST:
        raise SetupError(f"{name} holds a token of {len(longest)} characters; at most {_LONGEST} are read")
    total = sum(len(token.encode("utf-8", "surrogatepass")) for token in tokens)
    if total > _TEXT:
        raise SetupError(f"{name} holds tokens of {total} bytes; at most {_TEXT} are read")


def check_unknown(name: str, tokens: Mapping[str, object], unknown: Token | None) -> None:
    """Raises SetupError where the model could not read a word that it does not know."""
    if str(unknown) not in tokens:
        raise SetupError(
            f"{name} lacks {short(str(unknown))}, the token of unknown words (unk_token of tokenizer_config.json)"
        )
