"""The folder that a source becomes, which files it takes there, and how it quotes what a library says of it."""

import json
from dataclasses import dataclass
from pathlib import Path

from bei.settings import SourceSettings

VOCABULARIES = (
    *("vocab.txt", "merges.txt", "sentencepiece.bpe.model", "spiece.model", "spm.model", "tokenizer.model"),
    *("tiktoken.model", "*.tiktoken"),
)
"""Files of which a missing tokenizer.json is built; vocab.json is JSON anyway."""

WANTED = (
    *VOCABULARIES,
    *(f"*/{name}" for name in VOCABULARIES),
    *("*.json", "*.safetensors", "*/config.json", "*/model.safetensors", "*/*.json", "artifact.metadata"),
    *("README.md", "chat_template.jinja"),  # which may call a language model a reranker
)


@dataclass(frozen=True)
class Fetched:
    """A folder in the Hugging Face layout, and the revision it was taken at where the source has such."""

    folder: Path
    revision: str | None = None


def quote(error: BaseException, settings: SourceSettings) -> str:
    """A library's error in a few words, without the secret, which it may quote."""
    text = str(error)
    for secret in _secrets(settings):
        text = text.replace(secret, "***")
    return f"{type(error).__name__}: {text.splitlines()[0][:120]}" if text else type(error).__name__


def _secrets(settings: SourceSettings) -> list[str]:
    """The credential, and the values in it where it is JSON; the longest first, for one may hold another."""
    if settings.credential is None:
        return []
    whole = settings.credential.get_secret_value()
    try:
        values = json.loads(whole)
    except ValueError:
        values = None
    parts = map(str, values.values()) if isinstance(values, dict) else ()
    return sorted(filter(None, (whole, *parts)), key=len, reverse=True)
