"""How the inputs of one call are read."""

from dataclasses import dataclass

from bei.tokenizer.encoding import Input, Role
from bei.tokenizer.pairs import RenderedPair
from bei.tokenizer.reading import Wanted
from bei.tokenizer.template import Direction


@dataclass(frozen=True, slots=True)
class How:
    """How the inputs of one call are read; `most` tokens of each text are needed."""

    truncate: bool
    direction: Direction
    prompt: str
    before_pairs: str
    role: Role | None
    most: int
    max_second_tokens: int | None

    def of(self, text: str) -> Wanted:
        return text, self.most, self.direction

    def of_second(self, text: str) -> Wanted:
        if self.max_second_tokens is None:
            return self.of(text)
        one_more = self.max_second_tokens + 1  # tells that it is cut
        most = min(one_more, self.most) if self.direction == "right" else one_more
        return text, most, "right"

    def wanted(self, item: "Input | RenderedPair") -> list[Wanted]:
        """The parts of an input that are to be read."""
        match item:
            case str():
                return [self.of(self.prompt + item)]
            case RenderedPair():
                return [self.of(piece) for piece in item.pieces]
            case (str(first), str(second)):
                return [self.of(self.before_pairs + first), self.of_second(second)]
            case _:
                return []
