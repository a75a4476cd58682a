"""WavLM (base, base-plus, large), read from a Hugging Face directory.

A wave is cut into steps of 20 ms by convolutions; a transformer with a convolution for
absolute and gated biases for relative positions runs over them.  Rows are as if alone:
what pads them has no effect.  Source: arXiv 2110.13900; WavLMModel of transformers.
"""

import dataclasses
import math
import pathlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax import nnx

from qwen3tts_jax.checkpoints import hub, key_tables, weights
from qwen3tts_jax.config import section
from qwen3tts_jax.nn import conv, layers
from qwen3tts_jax.teachers import blocks

FILE = weights.WEIGHTS
RATE = 16_000  # Hz
TAIL = 0  # samples of silence wanted after a clip: attention is masked
EXTRACTOR_EPS = 1e-5  # PyTorch's default, whatever layer_norm_eps
VARIANCE_FLOOR = 1e-7  # under the deviation of a wave: Wav2Vec2FeatureExtractor
GATES = 8  # rows of gru_rel_pos_linear: two gates, each a sum of four
UNUSED = ("masked_spec_embed",)  # for training WavLM itself
POSITION_CONV = "encoder.pos_conv_embed.conv"
# weight norm, by torch.nn.utils.weight_norm and by its successor
WEIGHT_NORM = (
    ("weight_g", "weight_v"),
    ("parametrizations.weight.original0", "parametrizations.weight.original1"),
)


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes and kind.

    Attributes:
        stable: large: norms before the parts of a layer, and at the end; else after.
        extractor_norm: group (the first convolution only) | layer (all of them).
        normalize: whether a wave is brought to mean 0 and variance 1 first.
        convs: (channels, kernel, stride) of each convolution of the extractor.
        position_kernel, position_groups: of the convolution over steps.
        buckets, max_distance: of the relative positions.
    """

    dim: int
    heads: int
    ffn: int
    layers: int
    eps: float
    stable: bool
    extractor_norm: str
    normalize: bool
    convs: tuple[tuple[int, int, int], ...]
    conv_bias: bool
    position_kernel: int
    position_groups: int
    buckets: int
    max_distance: int

    @property
    def default_layer(self) -> str:
        """SpeechTokenizer (arXiv 2308.16692, hubert_rep_extract.py) averages all."""
        return blocks.AVERAGE

    def check(self, layer: int | str) -> None:
        """Raises ValueError unless `hidden` knows this layer."""
        blocks.check_layer(layer, self.layers)

    def steps(self, samples):
        """States of so many samples: (samples - 400) // 320 + 1 as released."""
        for _, kernel, stride in self.convs:
            samples = (samples - kernel) // stride + 1
        return samples

    @property
    def min_samples(self) -> int:
        """The shortest wave with a state."""
        samples = 1
        for _, kernel, stride in reversed(self.convs):
            samples = (samples - 1) * stride + kernel
        return samples

    @classmethod
    def from_hf(cls, values: dict, processor: dict) -> "Config":
        """Of a parsed config.json and preprocessor_config.json.

        Raises: ValueError listing every missing or unusable field.
        """
        s = section.Section(values, "config.json")
        p = section.Section(processor, "preprocessor_config.json", s.problems)
        s.only("model_type", "wavlm")
        for key in ("hidden_act", "feat_extract_activation"):
            s.only(key, "gelu")
        s.only("add_adapter", False)
        s.only("feat_extract_norm", "group", "layer")
        p.only("sampling_rate", RATE)
        sizes = [s.ints(f"conv_{name}") for name in ("dim", "kernel", "stride")]
        if len({len(size) for size in sizes}) > 1:
            s.problems.append(
                "config.json: conv_dim, _kernel, _stride differ in length"
            )
        config = cls(
            dim=s.need("hidden_size", int),
            heads=s.need("num_attention_heads", int),
            ffn=s.need("intermediate_size", int),
            layers=s.need("num_hidden_layers", int),
            eps=s.need("layer_norm_eps", float),
            stable=s.need("do_stable_layer_norm", bool),
            extractor_norm=s.need("feat_extract_norm", str),
            normalize=p.need("do_normalize", bool),
            convs=tuple(zip(*sizes)),
            conv_bias=s.need("conv_bias", bool),
            position_kernel=s.need("num_conv_pos_embeddings", int),
            position_groups=s.need("num_conv_pos_embedding_groups", int),
            buckets=s.need("num_buckets", int),
            max_distance=s.need("max_bucket_distance", int),
        )
        if s.problems:
            raise ValueError(
                "this is no WavLM that can be built:\n  " + "\n  ".join(s.problems)
            )
        return config


class ExtractorLayer(nnx.Module):
    """gelu(norm(conv(x))), without padding; the norm by steps, by channels, or none."""

    def __init__(self, config: Config, index: int, *, rngs: nnx.Rngs):
        in_dim = config.convs[index - 1][0] if index else 1
        dim, kernel, stride = config.convs[index]
        shape = dict(kernel_size=kernel, stride=stride, bias=config.conv_bias)
        self.conv = conv.CausalConv1d(in_dim, dim, **shape, rngs=rngs)
        self.by_channel = config.extractor_norm == "group"
        self.normed = not (self.by_channel and index)
        if self.normed:
            self.norm = layers.LayerNorm(dim, eps=EXTRACTOR_EPS)

    def __call__(self, x: jax.Array, length: jax.Array) -> jax.Array:
        """x: float [B, T, C]; length: int [B], steps of the result that count."""
        x = blocks.convolve(self.conv, x)
        if self.normed:
            x = self._group_norm(x, length) if self.by_channel else self.norm(x)
        return jax.nn.gelu(x, approximate=False)

    def _group_norm(self, x: jax.Array, length: jax.Array) -> jax.Array:
        """One group per channel: each over the steps of its own row."""
        valid, count = _valid(x, length), length[:, None, None].astype(jnp.float32)
        wide = x.astype(jnp.float32)
        mean = jnp.sum(wide * valid, axis=1, keepdims=True) / count
        variance = jnp.sum(jnp.square(wide - mean) * valid, axis=1, keepdims=True)
        x = ((wide - mean) * jax.lax.rsqrt(variance / count + self.norm.eps)).astype(
            x.dtype
        )
        norm = self.norm
        return layers.per_channel(norm.scale, x) * x + layers.per_channel(norm.bias, x)


class PositionConv(nnx.Module):
    """gelu(grouped convolution), "same" length.  x: float [B, T, D]."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        size, dim, groups = config.position_kernel, config.dim, config.position_groups
        normal = jax.random.normal(rngs.params(), (size, dim // groups, dim))
        self.kernel = nnx.Param(normal * (size * dim / groups) ** -0.5)
        self.bias = nnx.Param(jnp.zeros(dim))
        self.pad = (size // 2, size - 1 - size // 2)
        self.groups = groups

    def __call__(self, x: jax.Array) -> jax.Array:
        y = jax.lax.conv_general_dilated(
            x,
            self.kernel[...].astype(x.dtype),
            (1,),
            (self.pad,),
            dimension_numbers=("NWC", "WIO", "NWC"),
            feature_group_count=self.groups,
        )
        return jax.nn.gelu(y + layers.per_channel(self.bias, y), approximate=False)


class Attention(nnx.Module):
    """Attention with a bias of relative positions that each step and head gates."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        dim, options = config.dim, dict(bias=True, rngs=rngs)
        self.query = layers.Linear(dim, dim, **options)
        self.key = layers.Linear(dim, dim, **options)
        self.value = layers.Linear(dim, dim, **options)
        self.out = layers.Linear(dim, dim, **options)
        self.gate = layers.Linear(dim // config.heads, GATES, **options)
        self.gate_scale = nnx.Param(jnp.ones((1, config.heads, 1, 1)))
        self.heads = config.heads

    def __call__(self, x: jax.Array, bias: jax.Array, seen: jax.Array) -> jax.Array:
        """x: float [B, T, D]; bias: float32 [1, N, T, T]; seen: bool [B, 1, 1, T]."""
        shape = (*x.shape[:2], self.heads, x.shape[-1] // self.heads)
        sums = self.gate(x.reshape(shape)).reshape(*shape[:3], 2, GATES // 2).sum(-1)
        first, second = jnp.moveaxis(jax.nn.sigmoid(sums.astype(jnp.float32)), -1, 0)
        scale = self.gate_scale[...][:, :, 0, 0].astype(jnp.float32)[:, None]
        gate = first * (second * scale - 1.0) + 2.0  # [B, T, N]
        bias = jnp.swapaxes(gate, 1, 2)[..., None] * bias  # [B, N, T, T]
        bias = jnp.where(seen, bias, jnp.finfo(jnp.float32).min)
        parts = (self.query, self.key, self.value)
        return self.out(blocks.attend(*(p(x).reshape(shape) for p in parts), bias))


class Block(nnx.Module):
    """Attention and mlp with residuals; norms before them (stable) or after."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.attention = Attention(config, rngs=rngs)
        self.attention_norm = layers.LayerNorm(config.dim, eps=config.eps)
        self.mlp = layers.GeluMLP(config.dim, config.ffn, bias=True, rngs=rngs)
        self.mlp_norm = layers.LayerNorm(config.dim, eps=config.eps)
        self.stable = config.stable

    def __call__(self, x: jax.Array, bias: jax.Array, seen: jax.Array) -> jax.Array:
        """Float [B, T, D]; arguments as those of `Attention`."""
        if self.stable:
            x = x + self.attention(self.attention_norm(x), bias, seen)
            return x + self.mlp(self.mlp_norm(x))
        x = self.attention_norm(x + self.attention(x, bias, seen))
        return self.mlp_norm(x + self.mlp(x))


class Encoder(nnx.Module):
    """Extractor, projection, positions, blocks."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        width, dim = config.convs[-1][0], config.dim
        indices = range(len(config.convs))
        extractor = [ExtractorLayer(config, i, rngs=rngs) for i in indices]
        self.extractor = nnx.List(extractor)
        self.project_norm = layers.LayerNorm(width, eps=config.eps)
        self.project = layers.Linear(width, dim, bias=True, rngs=rngs)
        self.position_conv = PositionConv(config, rngs=rngs)
        self.norm = layers.LayerNorm(dim, eps=config.eps)
        self.distances = layers.Embed(config.buckets, config.heads, rngs=rngs)
        self.blocks = nnx.List([Block(config, rngs=rngs) for _ in range(config.layers)])
        self.config = config

    def __call__(
        self, wave: jax.Array, length: jax.Array, layer: int | str
    ) -> jax.Array:
        """Float [B, T, D], state `layer` of layers + 1; see `hidden`."""
        return blocks.choose(self._states(wave, length), layer)

    def _states(self, wave: jax.Array, length: jax.Array) -> Iterator[jax.Array]:
        c = self.config
        x, steps = wave[:, :, None], length
        for part, (_, kernel, stride) in zip(self.extractor, c.convs):
            steps = jnp.maximum((steps - kernel) // stride + 1, 1)
            x = part(x, steps)
        x = self.project(self.project_norm(x))
        x = x * _valid(x, steps)
        x = x + self.position_conv(x)
        x = x if c.stable else self.norm(x)
        yield x
        places = relative_buckets(x.shape[1], c.buckets, c.max_distance)
        bias = self.distances(places).astype(jnp.float32)  # [T, T, N]
        bias = jnp.moveaxis(bias, -1, 0)[None]
        seen = jnp.arange(x.shape[1])[None] < steps[:, None]
        for i, block in enumerate(self.blocks):
            x = block(x, bias, seen[:, None, None])
            yield self.norm(x) if c.stable and i + 1 == c.layers else x


def _valid(x: jax.Array, length: jax.Array) -> jax.Array:
    """1 at the steps that count, else 0: [B, T, 1] in the dtype of x."""
    valid = jnp.arange(x.shape[1])[None] < length[:, None]
    return valid[:, :, None].astype(x.dtype)


def relative_buckets(length: int, buckets: int, max_distance: int) -> np.ndarray:
    """int [T, T]: the bucket of key s seen from query t.

    Half of them for keys to come; of each half one half for single distances, the rest
    growing with their logarithm up to `max_distance`.
    """
    distance = np.arange(length)[None] - np.arange(length)[:, None]
    half, exact = buckets // 2, buckets // 4
    far = np.float32(np.maximum(np.abs(distance), 1)) / np.float32(exact)
    # in float32, as PyTorch does: some distances lie on an edge
    far = np.log(far) / np.float32(math.log(max_distance / exact))
    far = exact + (far * np.float32(half - exact)).astype(np.int32)
    near = np.abs(distance)
    bucket = np.where(near < exact, near, np.minimum(far, half - 1))
    return bucket + half * (distance > 0)


def hidden(
    module: Encoder,
    wave: jax.Array,
    length: jax.Array,
    *,
    layer: int | str | None = None,
) -> jax.Array:
    """States of a batch; state t stands for samples 320 t to 320 t + 400.

    Args:
        wave: float [B, W], 16 kHz, in [-1, 1]; at least 400 samples.
        length: int [B], samples of each row that count, at least 400.
        layer: 0 to layers (0: what enters the first one), or "average"; None: that.
    Returns:
        float32 [B, (W - 400) // 320 + 1, D]; of row b the first
        (length[b] - 400) // 320 + 1 count.
    Raises: ValueError for a shorter wave or another layer.
    """
    c = module.config
    if wave.shape[1] < c.min_samples:
        raise ValueError(
            f"got {wave.shape[1]} samples, expected at least {c.min_samples}; pad with "
            "silence"
        )
    layer = c.default_layer if layer is None else layer
    c.check(layer)
    valid = (jnp.arange(wave.shape[1])[None] < length[:, None]).astype(jnp.float32)
    wave = jnp.where(valid > 0, wave, 0.0).astype(jnp.float32)
    if c.normalize:
        count = length[:, None].astype(jnp.float32)
        centred = (wave - jnp.sum(wave, 1, keepdims=True) / count) * valid
        variance = jnp.sum(jnp.square(centred), 1, keepdims=True) / count
        wave = centred * jax.lax.rsqrt(variance + VARIANCE_FLOOR)
    return module(wave, length, layer)


def load(directory: pathlib.Path) -> tuple[Config, Encoder]:
    """The encoder of a directory with config.json, preprocessor_config.json and
    model.safetensors of a WavLMModel; float32.

    Raises:
        FileNotFoundError: one of them is missing.
        ValueError: they are not whole, or not of a WavLM.
    """
    directory = pathlib.Path(directory)
    names = ("config.json", "preprocessor_config.json")
    config = Config.from_hf(*(hub.read_json(directory / name) for name in names))
    path = directory / FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing; write it with transformers: "
            "WavLMModel.from_pretrained(...).save_pretrained(...)"
        )
    try:
        arrays = safetensors.numpy.load_file(path)
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"{path} is not a whole safetensors file ({error}); copy it again"
        ) from error
    abstract = weights.abstract(Encoder, config)
    return config, blocks.fill(abstract, _rules(), _plain_kernel(arrays), path)


def _plain_kernel(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Without what is unused, and without weight norm in the position convolution.

    Its weight is gain * direction / |direction|, one gain for each tap.
    """
    arrays = {key: value for key, value in arrays.items() if key not in UNUSED}
    for names in WEIGHT_NORM:
        keys = [f"{POSITION_CONV}.{name}" for name in names]
        if not all(key in arrays for key in keys):
            continue
        gain, direction = (arrays.pop(key).astype(np.float32) for key in keys)
        norm = np.sqrt(np.sum(direction**2, axis=(0, 1), keepdims=True))
        arrays[f"{POSITION_CONV}.weight"] = gain * direction / norm
    return arrays


def _rules() -> list[key_tables.Rule]:
    rules = []
    ours, theirs = "extractor.*", "feature_extractor.conv_layers.*"
    rules.append(
        key_tables.Rule(f"{ours}.conv.kernel", f"{theirs}.conv.weight", key_tables.CONV)
    )
    rules.append(key_tables.Rule(f"{ours}.conv.bias", f"{theirs}.conv.bias"))
    rules += blocks.norm(f"{ours}.norm", f"{theirs}.layer_norm")
    rules += blocks.norm("project_norm", "feature_projection.layer_norm")
    rules += blocks.linear("project", "feature_projection.projection")
    kernel, bias = (f"{POSITION_CONV}.{name}" for name in ("weight", "bias"))
    rules.append(key_tables.Rule("position_conv.kernel", kernel, key_tables.CONV))
    rules.append(key_tables.Rule("position_conv.bias", bias))
    rules += blocks.norm("norm", "encoder.layer_norm")
    attention = "encoder.layers.0.attention"
    rules.append(
        key_tables.Rule("distances.embedding", f"{attention}.rel_attn_embed.weight")
    )
    ours, theirs = "blocks.*", "encoder.layers.*"
    attention = f"{theirs}.attention"
    for name, key in dict(query="q", key="k", value="v", out="out").items():
        rules += blocks.linear(f"{ours}.attention.{name}", f"{attention}.{key}_proj")
    rules += blocks.linear(f"{ours}.attention.gate", f"{attention}.gru_rel_pos_linear")
    rules.append(
        key_tables.Rule(
            f"{ours}.attention.gate_scale", f"{attention}.gru_rel_pos_const"
        )
    )
    rules += blocks.norm(f"{ours}.attention_norm", f"{theirs}.layer_norm")
    rules += blocks.norm(f"{ours}.mlp_norm", f"{theirs}.final_layer_norm")
    mlp = f"{theirs}.feed_forward"
    rules += blocks.linear(f"{ours}.mlp.up", f"{mlp}.intermediate_dense")
    return rules + blocks.linear(f"{ours}.mlp.down", f"{mlp}.output_dense")
