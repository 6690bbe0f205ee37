"""The fields of bodies for texts, vectors and scores, with the names of every family; fields.py lists all of them."""

from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import Field, PlainValidator, StrictBool, StrictInt, StrictStr, WithJsonSchema

from bei.api import prompts
from bei.api.call import Call, deadline
from bei.api.fields import Body, agreed
from bei.api.inputs import Dimensions, MaxTokens
from bei.checkpoint.task import Scoring
from bei.errors import Invalid
from bei.serving.answers import Options
from bei.serving.model import ServedModel
from bei.tasks.precision import Integers, Precision
from bei.tokenizer import Direction


def _truncate(value: Any) -> bool | Direction:
    """Whether a text is cut; Cohere and NVIDIA also say from which end."""
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.upper() in _TRUNCATE:
        return _TRUNCATE[value.upper()]
    raise ValueError("must be true, false, NONE, START or END")


_TRUNCATE: dict[str, bool | Direction] = {"NONE": False, "START": "left", "END": "right"}
Truncate = Annotated[
    bool | Direction,
    PlainValidator(_truncate),
    WithJsonSchema({"anyOf": [{"type": "boolean"}, {"enum": list(_TRUNCATE)}]}),
]
Side = Literal["left", "right", "Left", "Right"]
_ENDS: dict[Side | None, Direction | None] = {
    "left": "left",
    "right": "right",
    "Left": "left",
    "Right": "right",
    None: None,
}


class Cut(Body):
    """How long texts are cut. Unset is the server's default. `truncate_prompt_tokens` is the number of tokens, special
    ones included; -1 is the model's limit. `add_special_tokens` false reads texts without special tokens."""

    truncate: Truncate | None = None
    truncation: StrictBool | None = None
    truncate_prompt_tokens: Annotated[StrictInt, Field(ge=-1)] | None = None
    truncation_direction: Side | None = None
    truncation_side: Side | None = None
    add_special_tokens: StrictBool | None = None

    def options(self, model: ServedModel, call: Call) -> Options:
        """Raises Invalid if two fields contradict each other, or name no prompt."""
        if self.model_fields_set.isdisjoint(_CUT):
            return Options(deadline=deadline(call), is_background=call.is_background)
        sides: dict[str, Side | None] = {
            "truncation_direction": self.truncation_direction,
            "truncation_side": self.truncation_side,
        }
        side: Direction | None = agreed({**{name: _ENDS[of] for name, of in sides.items()}, "truncate": self._end()})
        most = self.truncate_prompt_tokens
        return Options(
            truncate=agreed(
                {
                    "truncate": None if self.truncate is None else bool(self.truncate),
                    "truncation": self.truncation,
                    "truncate_prompt_tokens": None if most is None else True,
                }
            ),
            truncation_direction=side,
            max_tokens=None if most == -1 else most,
            add_special_tokens=self.add_special_tokens is not False,
            deadline=deadline(call),
            is_background=call.is_background,
        )

    def _end(self) -> Direction | None:
        return self.truncate if isinstance(self.truncate, str) else None


_CUT = frozenset(Cut.model_fields) - {"model"}


class Reading(Cut):
    """The choice of the model's prompt: by its name, in full (`instruction`), or by the kind of text (`input_type` of
    Cohere, NVIDIA and Voyage, `task` of Jina)."""

    prompt_name: StrictStr | None = None
    instruction: StrictStr | None = None
    input_type: StrictStr | None = None
    task: StrictStr | None = None
    _prompts: ClassVar[tuple[str, ...]] = ("prompt_name", "instruction", "input_type", "task")

    def options(self, model: ServedModel, call: Call) -> Options:
        cut = super().options(model, call)
        if self.model_fields_set.isdisjoint(self._prompts):
            return cut
        sent = [name for name in self._prompts if getattr(self, name) is not None]
        if len(sent) > 1:
            raise Invalid(f"`{sent[1]}` cannot be set with `{sent[0]}`; send one of them", param=sent[1])
        name = self.prompt_name
        if sent and sent[0] in ("input_type", "task"):
            name = prompts.of_kind(model.prompts(), sent[0], getattr(self, sent[0]))
        return replace(cut, prompt_name=name, instruction=self.instruction)

    def name_of(self, field: str) -> str:
        if field == "prompt_name":
            return next((name for name in self._prompts if getattr(self, name) is not None), field)
        return super().name_of(field)


class Vectors(Reading):
    """How embeddings are finished. llama.cpp's `embd_normalize` is 2 or -1."""

    dimensions: Dimensions = None
    output_dimension: Dimensions = None
    normalize: StrictBool | None = None
    normalized: StrictBool | None = None
    use_activation: StrictBool | None = None
    embd_normalize: Literal[2, -1] | None = None

    def finish(self, normalize: bool = True) -> dict[str, Any]:
        """Arguments for `ServedModel.embed`; `normalize` is for a request that does not say."""
        if self.model_fields_set.isdisjoint(_FINISH):
            return {} if normalize else {"normalize": False}
        sizes = {name: getattr(self, name) or None for name in ("dimensions", "output_dimension")}
        said = self._unit()
        return {"normalize": normalize if said is None else said, "dimensions": agreed(sizes)}

    def _unit(self) -> bool | None:
        of_llama = None if self.embd_normalize is None else self.embd_normalize == 2
        said = {name: getattr(self, name) for name in ("normalize", "normalized", "use_activation")}
        return agreed({**said, "embd_normalize": of_llama})

    def check_length(self, *precisions: Precision) -> None:
        """Raises Invalid for int8 and uint8 of vectors that are not of length 1, whose ranges nobody knows."""
        found = next((one for one in precisions if one in get_args(Integers)), None)
        if found is not None and self._unit() is False:
            name = next(name for name in _LENGTH if getattr(self, name) is not None)
            raise Invalid(f"`{name}`: {found} is for vectors of length 1; leave it out", param=name)

    def name_of(self, field: str) -> str:
        return "output_dimension" if field == "dimensions" and not self.dimensions else super().name_of(field)


_LENGTH = ("normalize", "normalized", "use_activation", "embd_normalize")
_FINISH = frozenset(Vectors.model_fields) - frozenset(Reading.model_fields)


class Scored(Body):
    """`raw_scores` true, or vLLM's `use_activation` false, returns logits."""

    raw_scores: StrictBool | None = None
    use_activation: StrictBool | None = None

    def scoring(self) -> Scoring | None:
        """The function from logits to scores; None for the model's own."""
        activated = None if self.use_activation is None else not self.use_activation
        return "identity" if agreed({"raw_scores": self.raw_scores, "use_activation": activated}) else None


class PairReading(Cut):
    """`instruction` is a language model's instruction for a pair. The second text is cut to `max_tokens_per_doc`."""

    prompt_name: StrictStr | None = None
    instruction: StrictStr | None = None
    max_tokens_per_doc: MaxTokens = None

    def options(self, model: ServedModel, call: Call) -> Options:
        cut = super().options(model, call)
        most = self.max_tokens_per_doc or None
        return replace(cut, prompt_name=self.prompt_name, instruction=self.instruction, max_document_tokens=most)


class Pairs(PairReading, Scored):
    """Pairs whose score the model's own function makes, unless the request says otherwise."""
