"""Entities whose labels the request names: the arguments of GLiNER's `predict_entities`, on /predict_tokens."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, StrictBool

from bei.api.fields import Part, agreed
from bei.api.inputs import NamedLabels
from bei.errors import Invalid
from bei.tasks.named_entities import Wanted

_OF_TOKENS = ("aggregation_strategy", "ignore_labels")
"""Fields for models that label every token."""
_DEFAULTS = {"flat_ner": True, "multi_label": False}


class NamedEntities(Part):
    """`labels` are what a GLiNER looks for: a list, or an object with a description of each. Scores are above
    `threshold` (by default 0.5). Entities do not overlap; with `flat_ner` false one may lie in another.
    With `multi_label` the same words may have several labels; a GLiNER2, which decides on each label alone, gives them
    several unless it is false."""

    labels: NamedLabels | None = None
    threshold: Annotated[float, Field(strict=True, ge=0, le=1)] | None = None
    flat_ner: StrictBool | None = None
    multi_label: StrictBool | None = None


@dataclass(frozen=True)
class Named:
    labels: Mapping[str, str]
    wanted: Wanted


def stated(body: Any, inside: Any) -> Named | None:
    """The fields from either place of a body; None for a request without labels. Raises Invalid for fields that
    contradict each other, that need labels, or that mean nothing beside these."""
    fields = {name: _agreed(name, body, inside) for name in NamedEntities.model_fields}
    labels = fields.pop("labels")
    alone = next((name for name, value in fields.items() if value not in (None, _DEFAULTS.get(name))), None)
    if labels is None and alone is not None:
        raise Invalid(f"`{alone}` needs `labels`", param=alone)
    if labels is None:
        return None
    wrong = next((name for name in _OF_TOKENS if _agreed(name, body, inside) not in (None, "none")), None)
    if wrong is not None:
        raise Invalid(f"`{wrong}` is not possible beside `labels`; leave it out", param=wrong)
    threshold, flat = fields["threshold"], fields["flat_ner"]
    return Named(
        labels,
        Wanted(
            threshold=0.5 if threshold is None else threshold,
            flat=flat is not False,
            each=fields["multi_label"],
            raw=bool(body.raw_scores),
        ),
    )


def _agreed(name: str, body: Any, inside: Any) -> Any:
    return agreed({name: getattr(body, name), f"parameters.{name}": getattr(inside, name)})
