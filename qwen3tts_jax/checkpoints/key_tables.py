"""Official parameter names: one key table per part, and how tensors are arranged.

A table pairs our parameter paths with the names in the official safetensors;
`weights.py` reads and writes by it.
"""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from qwen3tts_jax.config import tokenizer_12hz, tts

# -------------------------------------------------------------------- layouts


@dataclasses.dataclass(frozen=True)
class Layout:
    """How one tensor is arranged on either side."""

    to_ours: Callable[
        [np.ndarray, tuple[int, ...]], np.ndarray
    ]  # (official, our shape)
    to_official: Callable[[np.ndarray], np.ndarray]


def _join_taps(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """[in, out, taps*stride] -> [taps, in, stride, out], oldest tap first."""
    taps, in_dim, stride, out_dim = shape
    x = x.reshape(in_dim, out_dim, taps, stride)[:, :, ::-1]
    return x.transpose(2, 0, 3, 1)


def _split_taps(x: np.ndarray) -> np.ndarray:
    taps, in_dim, stride, out_dim = x.shape
    x = x.transpose(1, 3, 0, 2)[:, :, ::-1]  # [in, out, taps, stride]
    return x.reshape(in_dim, out_dim, taps * stride)


KEEP = Layout(lambda x, _: x, lambda x: x)
LINEAR = Layout(lambda x, _: x.T, lambda x: x.T)  # [out, in] <-> [in, out]
POINTWISE = Layout(lambda x, _: x[:, :, 0].T, lambda x: x.T[:, :, None])
CONV = Layout(lambda x, _: x.transpose(2, 1, 0), lambda x: x.transpose(2, 1, 0))
CONV_TRANSPOSE = Layout(_join_taps, _split_taps)


# ------------------------------------------------------------------ key tables


@dataclasses.dataclass(frozen=True)
class Rule:
    """`ours` <-> `official`, with * for an index.

    A rule whose `ours` ends in [*] names a parameter with a leading axis that the
    official layout keeps as separate tensors.
    """

    ours: str
    official: str
    layout: Layout = KEEP


def _linear(ours: str, official: str, bias: bool = False) -> list[Rule]:
    rules = [Rule(f"{ours}.kernel", f"{official}.weight", LINEAR)]
    return rules + [Rule(f"{ours}.bias", f"{official}.bias")] * bias


def _conv(ours: str, official: str, bias: bool = True, layout=CONV) -> list[Rule]:
    rules = [Rule(f"{ours}.kernel", f"{official}.weight", layout)]
    return rules + [Rule(f"{ours}.bias", f"{official}.bias")] * bias


def _norm(ours: str, official: str, bias: bool = False) -> list[Rule]:
    rules = [Rule(f"{ours}.scale", f"{official}.weight")]
    return rules + [Rule(f"{ours}.bias", f"{official}.bias")] * bias


def _transformer(official: str, c: tts.TransformerConfig) -> list[Rule]:
    ours, theirs = "transformer.layers.*", f"{official}.layers.*"
    rules = []
    for name, key in dict(query="q", key="k", value="v", out="o").items():
        rules += _linear(f"{ours}.attention.{name}", f"{theirs}.self_attn.{key}_proj")
    bias = c.norm == "layer"
    rules += _norm(f"{ours}.attention_norm", f"{theirs}.input_layernorm", bias)
    rules += _norm(f"{ours}.mlp_norm", f"{theirs}.post_attention_layernorm", bias)
    if c.mlp == "swiglu":
        for name in ("gate", "up", "down"):
            rules += _linear(f"{ours}.mlp.{name}", f"{theirs}.mlp.{name}_proj")
    else:
        rules += _linear(f"{ours}.mlp.up", f"{theirs}.mlp.fc1")
        rules += _linear(f"{ours}.mlp.down", f"{theirs}.mlp.fc2")
    if c.qk_norm:
        rules += _norm(f"{ours}.attention.query_norm", f"{theirs}.self_attn.q_norm")
        rules += _norm(f"{ours}.attention.key_norm", f"{theirs}.self_attn.k_norm")
    if c.layer_scale is not None:
        scale = "layer_scale.scale"
        rules += [Rule(f"{ours}.attention_scale.scale", f"{theirs}.self_attn_{scale}")]
        rules += [Rule(f"{ours}.mlp_scale.scale", f"{theirs}.mlp_{scale}")]
    if c.final_norm:
        rules += _norm("transformer.norm", f"{official}.norm", bias)
    return rules


def talker_rules(config: tts.TalkerConfig) -> list[Rule]:
    """Talker: every key under talker., the predictor's apart."""
    model = "talker.model"
    return [
        Rule("text_embedding.embedding", f"{model}.text_embedding.weight"),
        Rule("codec_embedding.embedding", f"{model}.codec_embedding.weight"),
        *_linear("text_projection.fc1", "talker.text_projection.linear_fc1", True),
        *_linear("text_projection.fc2", "talker.text_projection.linear_fc2", True),
        *_linear("codec_head", "talker.codec_head"),
        *_transformer(model, config.transformer),
    ]


def qwen3_text_rules(config: tts.TransformerConfig) -> list[Rule]:
    """A Qwen3 text model, of which the talker can take the layers."""
    return [
        Rule("text_embedding.embedding", "model.embed_tokens.weight"),
        *_linear("text_head", "lm_head"),
        *_transformer("model", config),
    ]


def code_predictor_rules(config: tts.CodePredictorConfig) -> list[Rule]:
    """CodePredictor: every key under talker.code_predictor."""
    part = "talker.code_predictor"
    return [
        Rule("embedding[*]", f"{part}.model.codec_embedding.*.weight"),
        Rule("heads[*]", f"{part}.lm_head.*.weight", LINEAR),
        *_linear("projection", f"{part}.small_to_mtp_projection", True),
        *_transformer(f"{part}.model", config.transformer),
    ]


def speaker_encoder_rules(config: tts.SpeakerEncoderConfig) -> list[Rule]:
    """SpeakerEncoder: every key under speaker_encoder."""
    rules = _conv("first.conv", "speaker_encoder.blocks.0.conv")
    # our block i is the official block i + 1
    for i in range(len(config.channels) - 2):
        ours, official = f"blocks.{i}", f"speaker_encoder.blocks.{i + 1}"
        rules += _conv(f"{ours}.tdnn1.conv", f"{official}.tdnn1.conv")
        rules += _conv(f"{ours}.tdnn2.conv", f"{official}.tdnn2.conv")
        res2net = f"{official}.res2net_block.blocks.*.conv"
        rules += _conv(f"{ours}.res2net.*.conv", res2net)
        rules += _conv(f"{ours}.squeeze", f"{official}.se_block.conv1")
        rules += _conv(f"{ours}.excite", f"{official}.se_block.conv2")
    rules += _conv("aggregate.conv", "speaker_encoder.mfa.conv")
    rules += _conv("pool.tdnn.conv", "speaker_encoder.asp.tdnn.conv")
    rules += _conv("pool.attention", "speaker_encoder.asp.conv")
    return rules + _conv("project", "speaker_encoder.fc")


def _residual_vq(ours: str, official: str, book: str, names: Mapping[str, str]):
    rules = [
        Rule(f"{ours}.{name}[*]", f"{official}.{book}.{key}")
        for name, key in names.items()
    ]
    for name in ("input_proj", "output_proj"):
        key = f"{official}.{name}.weight"
        rules.append(Rule(f"{ours}.{name}.kernel", key, POINTWISE))
    return rules


def tokenizer_12hz_encoder_rules(config: tokenizer_12hz.Tokenizer12HzEncoderConfig):
    """12Hz Encoder: every key under encoder."""
    convs = "encoder.encoder.layers"
    rules = _conv("first", f"{convs}.0.conv")
    span = config.residual_layers + 2  # residual units, ELU, strided convolution
    for i in range(len(config.ratios)):
        start = 1 + i * span
        for j in range(config.residual_layers):
            ours, unit = f"blocks.{i}.units.{j}", f"{convs}.{start + j}.block"
            rules += _conv(f"{ours}.conv1", f"{unit}.1.conv")
            rules += _conv(f"{ours}.conv2", f"{unit}.3.conv")
        rules += _conv(f"blocks.{i}.down", f"{convs}.{start + span - 1}.conv")
    last = 1 + len(config.ratios) * span + 1
    rules += _conv("last", f"{convs}.{last}.conv")
    rules += _conv("down", "encoder.downsample.conv", bias=False)
    names = dict(embedding_sum="embed_sum", cluster_usage="cluster_usage")
    names |= dict(initialized="initialized")
    for name in ("semantic", "acoustic"):
        vq = f"encoder.quantizer.{name}_residual_vector_quantizer"
        rules += _residual_vq(f"quantizer.{name}", vq, "layers.*.codebook", names)
    return rules + _transformer("encoder.encoder_transformer", config.transformer)


def tokenizer_12hz_decoder_rules(config: tokenizer_12hz.Tokenizer12HzDecoderConfig):
    """12Hz Decoder: every key under decoder."""
    rules = _conv("pre_conv", "decoder.pre_conv.conv")
    names = dict(embedding_sum="embedding_sum", cluster_usage="cluster_usage")
    for name, key in dict(semantic="rvq_first", acoustic="rvq_rest").items():
        vq = f"decoder.quantizer.{key}"
        rules += _residual_vq(f"quantizer.{name}", vq, "vq.layers.*._codebook", names)
    part = "decoder.pre_transformer"
    rules += _transformer(part, config.transformer)
    rules += _linear("input_proj", f"{part}.input_proj", True)
    rules += _linear("output_proj", f"{part}.output_proj", True)
    ours, official = "upsample.*", "decoder.upsample.*"
    rules += _conv(f"{ours}.up", f"{official}.0.conv", layout=CONV_TRANSPOSE)
    ours, official = f"{ours}.convnext", f"{official}.1"
    rules += [
        Rule(f"{ours}.depthwise", f"{official}.dwconv.conv.weight", CONV),
        Rule(f"{ours}.depthwise_bias", f"{official}.dwconv.conv.bias"),
        Rule(f"{ours}.gamma.scale", f"{official}.gamma"),
        *_norm(f"{ours}.norm", f"{official}.norm", True),
        *_linear(f"{ours}.up", f"{official}.pwconv1", True),
        *_linear(f"{ours}.down", f"{official}.pwconv2", True),
    ]
    rules += _conv("first_conv", "decoder.decoder.0.conv")
    blocks = len(config.upsample_rates)
    for i in range(blocks):
        ours, official = f"blocks.{i}", f"decoder.decoder.{i + 1}.block"
        rules += _snake(f"{ours}.snake", f"{official}.0")
        rules += _conv(f"{ours}.up", f"{official}.1.conv", layout=CONV_TRANSPOSE)
        for j in range(3):
            unit, key = f"{ours}.units.{j}", f"{official}.{j + 2}"
            rules += _snake(f"{unit}.snake1", f"{key}.act1")
            rules += _snake(f"{unit}.snake2", f"{key}.act2")
            rules += _conv(f"{unit}.conv1", f"{key}.conv1.conv")
            rules += _conv(f"{unit}.conv2", f"{key}.conv2.conv")
    rules += _snake("snake", f"decoder.decoder.{blocks + 1}")
    return rules + _conv("wave_conv", f"decoder.decoder.{blocks + 2}.conv")


def _snake(ours: str, official: str) -> list[Rule]:
    return [Rule(f"{ours}.{name}", f"{official}.{name}") for name in ("alpha", "beta")]
