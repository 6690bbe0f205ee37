"""The fields of all API families that change an answer: a body reads such a field, or refuses it by name.

Other fields are ignored; the log names those that no family knows. null means unset, because clients send both.
"""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self, TypeVar

from pydantic import AliasChoices, BaseModel, ConfigDict, PrivateAttr, StrictStr, ValidationInfo, model_validator
from pydantic.fields import FieldInfo

from bei.errors import Error, Invalid, short

CHANGING: Mapping[str, tuple[Any, ...]] = {
    # reading of texts: TEI, Cohere, Voyage, vLLM, Jina, NVIDIA, SGLang
    "truncate": (),
    "truncation": (),
    "truncation_direction": ("right", "Right"),
    "truncation_side": ("right",),
    "truncate_prompt_tokens": (),
    "max_tokens": (),
    "max_tokens_per_doc": (0,),
    "max_tokens_per_query": (0,),
    "max_chunks_per_doc": (),
    "overlap_tokens": (),
    "stride": (),
    "padding": ("do_not_pad", "longest", True, False),
    "add_special_tokens": (True,),
    "skip_special_tokens": (True,),
    "prompt_name": (),
    "instruction": (),
    "instruct": (),
    "input_type": (),
    "task": (),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "add_generation_prompt": (False,),
    "continue_final_message": (False,),
    "lora_path": (),
    "embed_overrides": (),
    # additional inputs: vLLM, infinity, Cohere
    "messages": (),
    "images": (),
    "modality": ("text",),
    "rank_fields": (),
    # finishing and format of vectors: OpenAI, TEI, vLLM, Voyage, Jina, Cohere, NVIDIA, llama.cpp
    "dimensions": (0,),
    "output_dimension": (0,),
    "normalize": (),
    "normalized": (),
    "embd_normalize": (),
    "encoding_format": ("float",),
    "embedding_type": ("float", ["float"]),
    "encoding_type": ("float", ["float"]),
    "embedding_types": (["float"],),
    "embed_dtype": ("float32",),
    "endianness": ("little", "native"),
    "output_dtype": ("float",),
    "late_chunking": (False,),
    "late_chunking_params": (),
    "chunks": (),
    "return_multivector": (False,),
    # computation and selection of scores: TEI, vLLM, SGLang, Cohere, Voyage, huggingface_hub, GLiNER
    "use_activation": (),
    "activation": (True,),
    "softmax": (True,),
    "raw_scores": (False,),
    "function_to_apply": (),
    "apply_softmax": (False,),
    "label_token_ids": (),
    "item_first": (False,),
    "top_n": (0,),
    "top_k": (0,),
    "candidate_labels": (),
    "labels": (),
    "threshold": (),
    "flat_ner": (True,),
    "hypothesis_template": (),
    "multi_label": (False,),
    "aggregation_strategy": ("none",),
    "ignore_labels": (),
    "parameters": ({},),
}
"""Field → the values of it that request nothing."""
WITHOUT_EFFECT = frozenset(
    (
        *("user", "request_id", "rid"),  # of logs and bills: OpenAI, vLLM, SGLang
        *("priority", "cache_salt", "keep_alive", "options"),  # of when and where it runs: vLLM, Cohere, Ollama, HF
        *("mm_processor_kwargs", "media_io_kwargs"),  # of images: vLLM
        *("return_documents", "return_text"),  # of rankings: what is sent back beside the scores
    )
)
"""Fields of all families that change no number of any answer; where a body does not read them, they are ignored."""

_MOST_UNKNOWN = 16  # of a body, that are remembered


class Part(BaseModel):
    """A JSON object in a body."""

    model_config = ConfigDict(extra="ignore")
    own: ClassVar[frozenset[str]] = frozenset()
    """The names of the fields that it reads."""

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        cls.own = frozenset().union(*map(_names, cls.model_fields.items()))

    @model_validator(mode="before")
    @classmethod
    def _check_others(cls, sent: Any, info: ValidationInfo) -> Any:
        """Refuses fields that change an answer, and adds those that no family knows to the set of the context."""
        if isinstance(sent, dict) and not sent.keys() <= cls.own:
            for name in sent.keys() - cls.own:
                if name not in CHANGING:
                    if info.context is not None and name not in WITHOUT_EFFECT and len(info.context) < _MOST_UNKNOWN:
                        info.context.add(name)
                elif sent[name] is not None and not asks_nothing(name, sent[name]):
                    raise Invalid(f"`{name}` {short(sent[name])} is not possible here; leave it out", param=name)
        return sent


def _names(field: tuple[str, FieldInfo]) -> frozenset[str]:
    name, alias = field[0], field[1].validation_alias
    return frozenset(map(str, alias.choices)) if isinstance(alias, AliasChoices) else frozenset((name,))


def asks_nothing(name: str, value: Any) -> bool:
    """Whether a value of a field of CHANGING requests nothing."""
    return any(type(value) is type(of) and value == of for of in CHANGING[name])


class Body(Part):
    """The body of a request. With one model served, any `model` is accepted."""

    model: StrictStr | None = None
    input_fields: ClassVar[tuple[str, ...]] = ()

    def name_of(self, field: str) -> str:
        """The client's name for a field."""
        return field

    def given(self) -> Mapping[str, Any]:
        """The inputs by the client's name of their field: one input, or a list. The last field must have some."""
        return {self.name_of(field): getattr(self, field) for field in self.input_fields}

    def in_its_words(self, error: Error) -> Error:
        """The error with the field names of this body, in place of the service's own names."""
        if error.param is None:
            return error
        name, place = self.name_of(error.param), error.place
        if error.param == "inputs" and self.given():
            name, place = self._find(error.item)
        return error if (name, place) == (error.param, error.place) else error.called(name, place)

    def _find(self, item: Any) -> tuple[str, int | None]:
        """The field that holds an input, and the input's place there; for a pair the place of its second text."""
        fields = {name: given if isinstance(given, list) else [given] for name, given in self.given().items()}
        last = next(reversed(fields))
        found = (name for name, given in fields.items() if item is not None and item in given)
        name = next(found, last)
        wanted = item if item in fields[name] or not isinstance(item, tuple) else item[1]
        listed = wanted in fields[name] and isinstance(self.given()[name], list)
        return name, fields[name].index(wanted) if listed else None


class Synonyms(Body):
    """A body some of whose fields have several names. A client sends one of them."""

    _called: dict[str, str] = PrivateAttr(default_factory=dict)

    @model_validator(mode="wrap")
    @classmethod
    def _note_names(cls, sent: Any, build: Callable[[Any], Self]) -> Self:
        called: dict[str, str] = {}
        for name, field in cls.model_fields.items() if isinstance(sent, dict) else ():
            given = sorted(_names((name, field)) & sent.keys())
            if len(given) > 1:
                raise Invalid(f"`{given[0]}` and `{given[1]}` mean the same; send one of them", param=given[0])
            called |= {name: given[0]} if given else {}
        body = build(sent)
        body._called = called
        return body

    def name_of(self, field: str) -> str:
        return self._called.get(field, field)


T = TypeVar("T")


def agreed(given: Mapping[str, T | None]) -> T | None:
    """The common value of the fields that are set, by name. Raises Invalid where one contradicts another."""
    said = [(name, value) for name, value in given.items() if value is not None]
    for name, value in said[1:]:
        if value != said[0][1]:
            raise Invalid(f"`{name}` contradicts `{said[0][0]}`; send one of them", param=name)
    return said[0][1] if said else None
