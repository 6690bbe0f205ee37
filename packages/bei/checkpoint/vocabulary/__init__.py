"""tokenizer.json for a checkpoint that has only the files of an older tokenizer, such as vocab.txt."""

from bei.checkpoint.vocabulary.builder import build, kept

__all__ = ["build", "kept"]
