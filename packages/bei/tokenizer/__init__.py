"""Texts, pairs or token ids to encodings."""

from bei.tokenizer.encoding import Chunked, Encoding, Input, Role, Token, Windows
from bei.tokenizer.lists import Lists
from bei.tokenizer.template import Direction
from bei.tokenizer.tokenizer import Tokenizer
from bei.tokenizer.tokens import TextTokens

__all__ = ["Chunked", "Direction", "Encoding", "Input", "Lists", "Role", "TextTokens", "Token", "Tokenizer", "Windows"]
