"""Zero-shot classification: the fields of transformers' pipeline and of huggingface_hub's client, on /predict."""

from collections.abc import Mapping
from typing import Any

from pydantic import StrictBool, StrictStr

from bei.api.fields import Part, agreed
from bei.api.inputs import Candidates
from bei.api.shapes import Prediction, predictions
from bei.errors import Invalid, short
from bei.serving.answers import Answer, Options
from bei.serving.model import ServedModel
from bei.tokenizer import Input

_TEMPLATE = "This example is {}."
_PLACE = "{}"
_LONGEST = 1 << 14  # characters of a template, which is put around each label


class ZeroShot(Part):
    """`candidate_labels` are ranked by how far a text entails `hypothesis_template` with the label in place of `{}`.
    With `multi_label` the labels do not compete."""

    candidate_labels: Candidates | None = None
    hypothesis_template: StrictStr | None = None
    multi_label: StrictBool | None = None


async def classified(
    model: ServedModel, inputs: list[Input], fields: Mapping[str, Any], options: Options
) -> tuple[list[list[Prediction]], Answer]:
    """The candidates of each text, best first. Raises Invalid for a pair, and for a template without a place."""
    candidates, template = fields["candidate_labels"], fields["hypothesis_template"] or _TEMPLATE
    if len(template) > _LONGEST or template.count(_PLACE) != 1 or set(template.replace(_PLACE, "")) & set(_PLACE):
        rule = f"must have one place for a label, {{}}, and at most {_LONGEST} characters"
        raise Invalid(f"`hypothesis_template` {short(template)} {rule}", param="hypothesis_template")
    texts = [text for text in inputs if isinstance(text, str)]
    if len(texts) < len(inputs):
        raise Invalid("`inputs` must be texts, not pairs, beside `candidate_labels`", param="candidate_labels")
    before, after = template.split(_PLACE)
    each = bool(fields["multi_label"])
    answer = await model.zero_shot(texts, candidates, before=before, after=after, each=each, options=options)
    return predictions(answer, candidates), answer


def stated(*parts: ZeroShot) -> dict[str, Any] | None:
    """The fields, from either place of a body; None for a request without candidates. Raises Invalid for fields that
    contradict each other, or that ask for nothing without candidates."""
    fields = {
        name: agreed({f"{'parameters.' * place}{name}": getattr(part, name) for place, part in enumerate(parts)})
        for name in ZeroShot.model_fields
    }
    if fields["candidate_labels"] is not None:
        return fields
    alone = next((name for name, value in fields.items() if value), None)
    if alone is not None:
        raise Invalid(f"`{alone}` needs `candidate_labels`", param=alone)
    return None
