"""EuroBERT (arXiv:2503.05500): Llama's layers with bidirectional attention."""

from bei.architectures.config import Config
from bei.architectures.decoder import IGNORED, PREFIXES, attention_biases, decoder_spec, decoder_tensors
from bei.architectures.family import Family, TaskHead
from bei.architectures.spec import FIRST, MEAN, Dense, EncoderSpec
from bei.architectures.usual_heads import one_dense
from bei.errors import SetupError, short

_POOLED = {"bos": FIRST, "mean": MEAN}


def _spec(config: Config) -> EncoderSpec:
    return decoder_spec({"rms_norm_eps": 1e-5, **config}, causal=False, biases=attention_biases(config))


def _classifier(config: Config, spec: EncoderSpec, outputs: int) -> TaskHead:
    hidden, pooling = spec.hidden_size, config.get("classifier_pooling", "late")
    layers = (
        (Dense(hidden, hidden, True, "gelu"), ("dense",)),
        (Dense(hidden, outputs, True, "identity"), ("classifier",)),
    )
    if pooling == "late":
        return TaskHead(token_layers=layers, pooling=MEAN)
    if pooling not in _POOLED:
        raise SetupError(
            f"config.json: classifier_pooling {short(pooling)} is not supported; supported: late, bos, mean"
        )
    return TaskHead(pooling=_POOLED[pooling], layers=layers)


def _masked_lm(config: Config, spec: EncoderSpec, outputs: int) -> TaskHead:
    return TaskHead(((Dense(spec.hidden_size, outputs, False, "identity"), ("lm_head", "embed_tokens")),))


EUROBERT = Family(
    _spec,
    decoder_tensors,
    PREFIXES,
    (*IGNORED, r"dense\.", r"classifier\."),
    {"SequenceClassification": _classifier, "TokenClassification": one_dense, "MaskedLM": _masked_lm},
    FIRST,
)
