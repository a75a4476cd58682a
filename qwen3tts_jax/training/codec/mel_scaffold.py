"""What a codec is built on while it learns in pieces: log mels in the wave's place.

Trained in one piece a codec hears nothing for hours: the encoder gets no gradient that
says more than loudness before the decoder can make a wave, and the decoder has nothing
to make a wave of before the encoder says something.  Log mels stand between them:

    mel       log mels -> MelEncoder -> codes -> the decoder's slow half -> log mels
    vocoder   log mels -> the decoder's fast half -> wave
    join      both halves become one decoder (`fold`), which learns codes -> wave
    encoder   the wave's encoder learns to say what the MelEncoder says

after which nothing of this file is needed any more, and nothing of it is exported.
"""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, struct

from qwen3tts_jax.audio import io as audio
from qwen3tts_jax.audio import mel as mels
from qwen3tts_jax.config import tokenizer_12hz
from qwen3tts_jax.nn import conv, layers
from qwen3tts_jax.training.codec import losses as codec_losses

HOP = 240  # samples: 100 log mels a second
BINS = 80
WINDOW = 1024  # samples
# The window falls within its last hop, and ends where the hop ends: an encoder that
# sees no sample of the future can know all that the mels say (with centred windows of
# the same length it lacked 16 ms, and a code of an onset came a frame late).
FALL = HOP
SILENCE_DB = -65.0  # dBFS; white noise below it counts as silence
CENTRE, SPREAD = -1.0, 0.7  # mean and deviation of log10 mels of speech, roughly
STACK = 2  # log mels that the decoder's fast half takes at once: 50 Hz
WIDTH, BLOCKS = 256, 3  # of the MelEncoder
# how a decoder begins, see `as_filter_bank`
WEAKER = 0.3  # of what is not the filter bank
LOUDNESS = 0.1  # a signal of 1 becomes a wave of speech's size
STRAIGHT = 3.0  # added to a snake's beta: its bend divided by e^3


def log_mel(wave: jax.Array) -> jax.Array:
    """Log mels of whole hops, normalised: float32 [B, W / 240, 80] of float [B, W].

    Frame i looks at the 1,024 samples that end with sample 240 (i + 1).
    """
    count = wave.shape[1] // HOP
    hops = -(-WINDOW // HOP)
    before = hops * HOP - HOP
    x = jnp.pad(wave.astype(jnp.float32)[:, : count * HOP], ((0, 0), (before, 0)))
    x = x.reshape(len(x), count + hops - 1, HOP)
    parts = [x[:, i : i + count] for i in range(hops)]
    framed = jnp.concatenate(parts, axis=-1)[..., -WINDOW:]  # [B, T, window]
    spectrum = jnp.fft.rfft(framed * _window()[None, None])
    power = spectrum.real**2 + spectrum.imag**2 + codec_losses.POWER_FLOOR
    mel = jnp.matmul(jnp.sqrt(power), _filters(), precision=jax.lax.Precision.HIGHEST)
    floor = codec_losses.MelScales(silence_db=SILENCE_DB).floor(WINDOW)
    return (jnp.log10(jnp.maximum(mel, floor)) - CENTRE) / SPREAD


def _window() -> np.ndarray:
    """Float32 [1024]: rises for long, falls within FALL samples."""
    rise = np.arange(WINDOW - FALL) / (WINDOW - FALL)
    fall = np.arange(FALL) / FALL
    both = np.concatenate([np.sin(np.pi / 2 * rise), np.cos(np.pi / 2 * fall)])
    return (both**2).astype(np.float32)


def _filters() -> np.ndarray:
    """Float32 [513, 80]."""
    rate = audio.SAMPLE_RATE
    return mels.mel_filterbank(bins=BINS, n_fft=WINDOW, rate=rate, high=rate / 2).T


class MelEncoder(nnx.Module):
    """The log mels of a frame of the codec -> what the quantiser is given."""

    def __init__(self, frame: int, out_dim: int, *, rngs: nnx.Rngs):
        """frame: log mels in a frame of the codec; out_dim: the quantiser's width."""
        self.input_proj = layers.Linear(frame * BINS, WIDTH, bias=True, rngs=rngs)
        self.blocks = nnx.List(
            [conv.ConvNeXtBlock(WIDTH, rngs=rngs) for _ in range(BLOCKS)]
        )
        self.output_proj = layers.Linear(WIDTH, out_dim, bias=True, rngs=rngs)
        self.frame = frame

    def __call__(self, mel: jax.Array) -> jax.Array:
        """mel: float [B, T * frame, 80] -> float [B, T, out_dim]."""
        x = mel.reshape(len(mel), -1, self.frame * BINS)  # [B, T, frame * M]
        x = self.input_proj(x)
        for block in self.blocks:
            x = block(x)
        return self.output_proj(x)


@struct.dataclass
class Scaffold:
    """The parts that only training in pieces has.

    Attributes:
        encoder: log mels -> vectors for the quantiser.
        head: the decoder's slow half's vectors -> two log mels.
        embed: two log mels -> what the decoder's fast half takes.
    """

    encoder: MelEncoder
    head: layers.Linear
    embed: layers.Linear


def build(config: tokenizer_12hz.Tokenizer12HzConfig, *, rngs: nnx.Rngs) -> Scaffold:
    """Random float32 parts."""
    frame, width = config.samples_per_frame // HOP, config.decoder.latent_dim
    return Scaffold(
        encoder=MelEncoder(frame, config.encoder.transformer.dim, rngs=rngs),
        head=layers.Linear(width, STACK * BINS, bias=True, rngs=rngs),
        embed=layers.Linear(STACK * BINS, width, bias=True, rngs=rngs),
    )


def stacked(mel: jax.Array) -> jax.Array:
    """float [B, T, M] -> [B, T / 2, 2 * M]."""
    return mel.reshape(len(mel), -1, STACK * BINS)  # [B, T / 2, 2 * M]


@dataclasses.dataclass(frozen=True)
class Halves:
    """Where the decoder is cut.

    Attributes:
        slow: its first upsampling blocks, up to 50 Hz.
    """

    slow: int

    @classmethod
    def of(cls, config: tokenizer_12hz.Tokenizer12HzDecoderConfig) -> "Halves":
        """Raises: ValueError for a decoder that does not pass through 50 Hz, or whose
        next block does not begin with a plain linear map."""
        ratios = config.upsampling_ratios
        rates = np.cumprod((1, *ratios))
        frame = math.prod((*ratios, *config.upsample_rates))  # samples
        wanted = frame // (STACK * HOP)
        if wanted not in rates[:-1]:
            raise ValueError(
                f"got upsampling_ratios {tuple(ratios)}, expected some first ones to "
                f"make {wanted} and others to follow: training in pieces cuts the "
                "decoder at 50 Hz"
            )
        return cls(int(np.argmax(rates == wanted)))

    def is_fast(self, path: str) -> bool:
        """Whether a parameter of Parts belongs to the fast half."""
        found = re.match(r"decoder\.upsample\.(\d+)\.", path)
        if found:
            return int(found[1]) >= self.slow
        return bool(re.match(r"decoder\.(first_conv|blocks|snake|wave_conv)", path))


def fold(slow: dict, fast: dict, halves: Halves) -> dict:
    """One decoder of two halves that were trained on log mels.

    head and embed, one after the other, are one linear map, and the first thing that
    the fast half does is linear too: their product takes its place.  Their constant c
    goes into the bias of the slow half's last layer, as an s with s W = c.

    Args:
        slow: path -> array of stage mel; fast: of stage vocoder.
    Returns: path -> array, all of `slow` but for the fast half and that bias; decoding
        codes by it is decoding them to log mels by `slow` and those to a wave by
        `fast`, up to rounding.
    Raises: ValueError where W is not invertible.
    """
    joined = dict(slow) | {p: fast[p] for p in fast if halves.is_fast(p)}
    head, embed = slow["scaffold.head.kernel"], fast["scaffold.embed.kernel"]
    head, embed = (np.asarray(x, np.float64) for x in (head, embed))
    product = head @ embed  # W
    constant = np.asarray(slow["scaffold.head.bias"], np.float64) @ embed
    constant = constant + np.asarray(fast["scaffold.embed.bias"], np.float64)
    shift, *_ = np.linalg.lstsq(product.T, constant, rcond=None)
    error = np.abs(shift @ product - constant).max()
    if error > 1e-3 * max(np.abs(constant).max(), 1.0):
        raise ValueError(
            f"got a head and an embed whose product loses {error:.2g} of their "
            "constant, expected an invertible one; train stage mel or vocoder longer"
        )
    up = f"decoder.upsample.{halves.slow}.up.kernel"
    kernel = np.einsum("ij,tjso->tiso", product, np.asarray(fast[up], np.float64))
    last = f"decoder.upsample.{halves.slow - 1}.convnext"
    # x + gamma * (down(h) + bias): the shift is divided by what multiplies it
    scale = np.asarray(slow[f"{last}.gamma.scale"], np.float64)
    bias = np.asarray(slow[f"{last}.down.bias"], np.float64) + shift / scale
    found = {up: kernel, f"{last}.down.bias": bias}
    return joined | {p: jnp.asarray(v, jnp.float32) for p, v in found.items()}


def as_filter_bank(
    params: dict, config: tokenizer_12hz.Tokenizer12HzDecoderConfig
) -> dict:
    """Random weights whose last layers are those of a sound filter bank.

    The last transposed convolution begins as an inverse modified cosine transform, so
    that channels are bands of frequency from the first step on, and what follows it
    hardly bends a signal.  Only for a decoder whose last transposed convolution has as
    many channels in as it makes samples; any other stays as it is.
    """
    rates = config.upsample_rates
    block = f"decoder.blocks.{len(rates) - 1}"
    up = params[f"{block}.up.kernel"]
    taps, channels, stride, _ = up.shape
    if (taps, channels) != (2, stride):
        return dict(params)
    wave = WEAKER * params["decoder.wave_conv.kernel"]
    bank = cosine_transform(stride)
    found = {
        f"{block}.up.kernel": (WEAKER * up).at[:, :, :, 0].set(bank),
        # the newest sample of channel 0 is the wave
        "decoder.wave_conv.kernel": wave.at[-1, 0, 0].set(LOUDNESS),
        f"{block}.snake.beta": params[f"{block}.snake.beta"] + STRAIGHT,
        "decoder.snake.beta": params["decoder.snake.beta"] + STRAIGHT,
    }
    for path, value in params.items():
        if re.match(rf"{re.escape(block)}\.units\.\d+\.conv2\.kernel", path):
            found[path] = WEAKER * value
    return dict(params) | found


def cosine_transform(bands: int) -> np.ndarray:
    """The inverse of a modified discrete cosine transform under a sine window, as the
    kernel of a transposed convolution: float32 [2, bands, bands].

    [0] is how a band sounds in the samples after those where it begins, [1] in those.
    Source: Princen and Bradley, 1986.
    """
    time, band = np.arange(2 * bands)[:, None] + 0.5, np.arange(bands)[None] + 0.5
    window = np.sin(np.pi * time / (2 * bands)) * np.sqrt(2 / bands)
    waves = window * np.cos(np.pi / bands * (time + bands / 2) * band)
    first, second = waves[:bands].T, waves[bands:].T  # [band, sample]
    return np.stack([second, first]).astype(np.float32)
