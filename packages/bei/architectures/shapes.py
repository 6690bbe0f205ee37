"""The shape of every tensor that a spec needs, by our names."""

from collections.abc import Iterator, Mapping

from bei.architectures.layer_parts import Bottleneck, ShortConvolution
from bei.architectures.positions import RelativeBias
from bei.architectures.spec import (
    LINEARS,
    Dense,
    Disentangled,
    EncoderSpec,
    Experts,
    HeadLayer,
    Layer,
    LayerNorm,
    LinearName,
    Norm,
)
from bei.errors import SetupError

DECODER_NORMS = ("attention_end", "cross_end", "ffn_end")
Shapes = dict[str, tuple[int, ...]]


def tensor_shapes(spec: EncoderSpec) -> Shapes:
    """Raises SetupError if the layers of a head do not fit one another."""
    layers = [_layer_shapes(spec, i) for i in range(len(spec.layers))]
    pooled_size = spec.token_size * len(spec.pooling.modes)
    token_head = _head_shapes("token_head", spec.token_head, spec.hidden_size)
    head = _head_shapes("head", spec.head, pooled_size)
    final = _norm_shapes(spec.norm, "final_norm", spec.hidden_size) if spec.final_norm else {}
    return {
        name: shape
        for part in (_embedding_shapes(spec), *layers, _decoder_shapes(spec), final, token_head, head)
        for name, shape in part.items()
    }


def linear_sizes(spec: EncoderSpec, layer: Layer) -> dict[LinearName, tuple[int, int]]:
    """(outputs, inputs) of each linear part of the layer; of one expert if it has experts."""
    spec = spec.of_layer(layer)
    hidden, inner, gated = spec.hidden_size, spec.intermediate_size, spec.gated
    mixed, context = (3 * hidden, hidden) if layer.convolution else (spec.qkv_size, spec.query_size)
    if layer.experts is not None:
        inner, gated = layer.experts.intermediate_size, layer.experts.gated
    return {
        "qkv": (mixed, hidden),
        "out": (hidden, context),
        "up": (inner * (2 if gated else 1), hidden),
        "down": (hidden, inner),
    }


def bottleneck_sizes(spec: EncoderSpec, bottleneck: Bottleneck) -> dict[str, tuple[int, int]]:
    """(outputs, inputs) of each linear part of a layer with a bottleneck, by its name in the layer."""
    hidden, inner, size, query = spec.hidden_size, spec.intermediate_size, bottleneck.size, spec.query_size
    sizes = {
        **{"enter": (size, hidden), "shared": (size, hidden)},
        **{"query_key": (2 * query, size), "value": (query, hidden), "out": (size, query)},
    }
    for j in range(bottleneck.mlps):
        sizes |= {f"mlps.{j}.up": (inner, size), f"mlps.{j}.down": (size, inner)}
    return {**sizes, "leave": (hidden, size)}


def bottleneck_norms(spec: EncoderSpec, bottleneck: Bottleneck) -> dict[str, int]:
    """The size of each norm of such a layer, by its name in the layer."""
    inner = ("enter_norm", "shared_norm", "out_norm", *(f"mlps.{j}.norm" for j in range(bottleneck.mlps)))
    return {**dict.fromkeys(inner, bottleneck.size), "leave_norm": spec.hidden_size}


def layer_input_sizes(spec: EncoderSpec) -> dict[str, tuple[int, int]]:
    """(outputs, inputs) of each product of a layer with an input of its own, by its name in the layer. `input_project`
    is the layer's part of `layer_inputs.project`."""
    if spec.layer_inputs is None:
        return {}
    hidden, size = spec.hidden_size, spec.layer_inputs.size
    return {"input_project": (size, hidden), "input_gate": (size, hidden), "input_out": (hidden, size)}


def decoder_sizes(spec: EncoderSpec) -> dict[str, tuple[int, int]]:
    """(outputs, inputs) of each linear part of a layer of the decoder, by its name in the layer. Beside the parts of a
    layer of the encoder, `query`, `key_value` and `cross_out` attend to its states."""
    if spec.decoder is None:
        return {}
    sizes: dict[str, tuple[int, int]] = dict(linear_sizes(spec, Layer()).items())
    return {
        **sizes,
        "query": sizes["out"],
        "key_value": (2 * spec.key_size, spec.hidden_size),
        "cross_out": sizes["out"],
    }


def linear_parts(spec: EncoderSpec, i: int) -> Iterator[tuple[str, LinearName]]:
    """The name in layer i of each of its linear parts, with its kind: ("experts.3.up", "up"). The router is not among
    them: it runs in float32. Those of a bottleneck have no such kinds."""
    experts = spec.layers[i].experts
    if spec.layers[i].bottleneck is not None:
        return
    if experts is None:
        yield from zip(LINEARS, LINEARS, strict=True)
        return
    yield from (("qkv", "qkv"), ("out", "out"))
    for expert in range(experts.count):
        yield from ((f"experts.{expert}.up", "up"), (f"experts.{expert}.down", "down"))


def position_projections(spec: EncoderSpec) -> tuple[str, ...]:
    """The matrices of a layer that project the vectors of relative positions."""
    bias = spec.relative_bias
    if not isinstance(bias, Disentangled) or not bias.own_projections:
        return ()
    used = {"position_query": bias.position_to_content, "position_key": bias.content_to_position}
    return tuple(name for name, is_used in used.items() if is_used)


def products_per_token(spec: EncoderSpec) -> int:
    """Multiplications in all layers for one token, without attention."""
    own = _products(layer_input_sizes(spec))
    decoder = spec.decoder.layers * _products(decoder_sizes(spec)) if spec.decoder else 0
    return sum(_products_of_layer(spec, layer) + own for layer in spec.layers) + decoder


def _products(sizes: Mapping[str, tuple[int, int]]) -> int:
    return sum(outputs * inputs for outputs, inputs in sizes.values())


def _products_of_layer(spec: EncoderSpec, layer: Layer) -> int:
    if layer.bottleneck is not None:
        return _products(bottleneck_sizes(spec, layer.bottleneck))
    sizes = {part: outputs * inputs for part, (outputs, inputs) in linear_sizes(spec, layer).items()}
    times = 1 if layer.experts is None else layer.experts.chosen
    return sizes["qkv"] + sizes["out"] + times * (sizes["up"] + sizes["down"])


def _embedding_shapes(spec: EncoderSpec) -> Shapes:
    hidden, embedding, summed = spec.hidden_size, spec.embedding_size, spec.sum_size
    shapes: Shapes = {"embeddings.token": (spec.vocab_size, embedding)}
    if spec.position_offset is not None:
        shapes["embeddings.position"] = (spec.position_offset + spec.max_tokens, summed)
    if spec.token_types:
        shapes["embeddings.token_type"] = (spec.token_types, summed)
    if spec.embedding_norm:
        shapes |= _norm_shapes(spec.norm, "embeddings.norm", summed)
    if spec.projects:
        inputs = 3 * embedding if spec.trigrams else embedding
        shapes |= {"embeddings.project.weight": (hidden, inputs), "embeddings.project.bias": (hidden,)}
    if spec.layer_inputs is not None:
        size = spec.layer_inputs.size
        shapes |= {
            "layer_inputs.project.weight": (len(spec.layers) * size, hidden),
            "layer_inputs.norm.weight": (size,),
        }
    match spec.relative_bias:
        case RelativeBias(buckets):
            shapes |= dict.fromkeys(spec.bias_names, (buckets, spec.heads))
        case Disentangled(buckets=buckets, norm=norm, sinusoids=False):
            shapes["relative_positions.weight"] = (2 * buckets, hidden)
            shapes |= _norm_shapes(norm, "relative_positions.norm", hidden) if norm else {}
    if spec.convolution:
        kernel = (hidden, hidden // spec.convolution.groups, spec.convolution.taps)
        shapes |= {"convolution.weight": kernel, "convolution.bias": (hidden,)}
        shapes |= _norm_shapes(spec.norm, "convolution.norm", hidden)
    return shapes


def _layer_shapes(spec: EncoderSpec, i: int) -> Shapes:
    bottleneck = spec.layers[i].bottleneck
    if bottleneck is not None:
        return _bottleneck_shapes(spec, bottleneck, f"layers.{i}")
    shapes: Shapes = {}
    experts = spec.layers[i].experts
    sizes = linear_sizes(spec, spec.layers[i])
    for name, part in linear_parts(spec, i):
        shapes[f"layers.{i}.{name}.weight"] = sizes[part]
        if experts.biases if experts and name.startswith("experts.") else part in spec.biases:
            shapes[f"layers.{i}.{name}.bias"] = sizes[part][:1]
    if experts is not None:
        shapes |= _router_shapes(experts, f"layers.{i}", spec.hidden_size)
    for place in spec.layers[i].norms:
        shapes |= _norm_shapes(spec.norm, f"layers.{i}.{place}", spec.hidden_size)
    if spec.layer_inputs is not None:
        shapes |= _input_shapes(spec, f"layers.{i}")
    return shapes | _mixing_shapes(spec.of_layer(spec.layers[i]), f"layers.{i}", spec.layers[i].convolution)


def _bottleneck_shapes(spec: EncoderSpec, bottleneck: Bottleneck, layer: str) -> Shapes:
    shapes: Shapes = {}
    for part, (outputs, inputs) in bottleneck_sizes(spec, bottleneck).items():
        shapes |= {f"{layer}.{part}.weight": (outputs, inputs), f"{layer}.{part}.bias": (outputs,)}
    for norm, size in bottleneck_norms(spec, bottleneck).items():
        shapes |= _norm_shapes(spec.norm, f"{layer}.{norm}", size)
    return shapes


def _mixing_shapes(spec: EncoderSpec, layer: str, convolution: ShortConvolution | None) -> Shapes:
    """The tensors of attention beside its products, or the taps of a convolution."""
    shapes: Shapes = {}
    if convolution is not None:
        return {f"{layer}.taps.weight": (spec.hidden_size, 1, convolution.taps)}
    for projection in position_projections(spec):
        shapes[f"{layer}.{projection}.weight"] = (spec.query_size, spec.hidden_size)
        shapes[f"{layer}.{projection}.bias"] = (spec.query_size,)
    if isinstance(spec.relative_bias, Disentangled) and spec.relative_bias.segments:
        shapes |= dict.fromkeys((f"{layer}.position_bias", f"{layer}.segment_bias"), (spec.query_size,))
        shapes[f"{layer}.segments"] = (2, spec.query_size)
    if spec.sinks:
        shapes[f"{layer}.sinks"] = (spec.heads,)
    for of, size in spec.qk_norm_sizes.items():
        shapes |= _norm_shapes(spec.norm_of_heads, f"{layer}.{of}", size)
    return shapes


def _decoder_shapes(spec: EncoderSpec) -> Shapes:
    if spec.decoder is None:
        return {}
    hidden = spec.hidden_size
    shapes: Shapes = {"decoder.position": ((spec.position_offset or 0) + spec.max_tokens, hidden)}
    shapes |= _norm_shapes(spec.norm, "decoder.norm", hidden)
    for i in range(spec.decoder.layers):
        for part, shape in decoder_sizes(spec).items():
            shapes |= {f"decoder.layers.{i}.{part}.weight": shape, f"decoder.layers.{i}.{part}.bias": shape[:1]}
        for place in DECODER_NORMS:
            shapes |= _norm_shapes(spec.norm, f"decoder.layers.{i}.{place}", hidden)
    return shapes


def _router_shapes(experts: Experts, layer: str, hidden: int) -> Shapes:
    shapes: Shapes = {f"{layer}.router.weight": (experts.count, hidden)}
    if experts.biases:
        shapes[f"{layer}.router.bias"] = (experts.count,)
    if experts.output_bias:
        shapes[f"{layer}.experts.bias"] = (hidden,)
    return shapes


def _input_shapes(spec: EncoderSpec, layer: str) -> Shapes:
    sizes = layer_input_sizes(spec)
    return {
        **{f"{layer}.{part}.weight": sizes[part] for part in ("input_gate", "input_out")},
        f"{layer}.input_norm.weight": (spec.hidden_size,),
        f"{layer}.scale": (1,),
    }


def _norm_shapes(norm: Norm, name: str, size: int) -> Shapes:
    return {f"{name}.{part}": (size,) for part in (("weight", "bias") if norm.bias else ("weight",))}


def _head_shapes(name: str, layers: tuple[HeadLayer, ...], width: int) -> Shapes:
    shapes: Shapes = {}
    for i, layer in enumerate(layers):
        match layer:
            case Dense(inputs, outputs, bias):
                if inputs != width:
                    raise SetupError(f"a Dense takes {inputs} numbers, the layer before it gives {width}")
                shapes[f"{name}.{i}.weight"] = (outputs, inputs)
                if bias:
                    shapes[f"{name}.{i}.bias"] = (outputs,)
                if layer.projects:
                    shapes[f"{name}.{i}.residual.weight"] = (outputs, inputs)
                width = outputs
            case LayerNorm(size, eps, bias):
                shapes |= _norm_shapes(Norm("layer", eps, bias), f"{name}.{i}", size)
    return shapes
