"""Pairs of texts."""

from dataclasses import dataclass


@dataclass(frozen=True)
class RenderedPair:
    """A pair rendered by its model's template. Only `body` is cut; it ends with the document.
    `is_truncated`: the document is a part of the one that was sent."""

    characters: int
    query: str
    document: str
    is_truncated: bool
    prefix: tuple[str, ...]
    body: tuple[str, ...]
    suffix: tuple[str, ...]

    @property
    def parts(self) -> tuple[tuple[str, ...], ...]:
        return self.prefix, self.body, self.suffix

    @property
    def pieces(self) -> tuple[str, ...]:
        return self.prefix + self.body + self.suffix

    @property
    def head(self) -> tuple[str, ...]:
        """The body before the document."""
        return *self.body[:-1], self.body[-1].removesuffix(self.document)
