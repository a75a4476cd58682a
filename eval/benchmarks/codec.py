"""Our codecs, as `speed` times them: whole, and packet after packet.

Best of two after one unmeasured call each.  At 25 Hz also of the parts: what makes
codes, the DiT with the official solver, and BigVGAN in the chunks of `decode`.
"""

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np

from qwen3tts_jax import runtime
from qwen3tts_jax.codecs import codec_25hz
from qwen3tts_jax.models.tokenizer_25hz import features, flow_matching

GROUPS = {1: 8, 8: 4}  # 12Hz frames decoded at once -> how often, for one timing
CHUNKS = 2  # of 25Hz codes
REFERENCE_FRAMES = 300  # of the reference mel: 3 s
MEL_LEVEL = -5.0  # about that of speech


def timed(function, *args):
    """(seconds, result)."""
    start = time.perf_counter()
    result = jax.block_until_ready(function(*args))
    return time.perf_counter() - start, result


def best(calls: dict) -> dict:
    """Name -> seconds of the better of two calls, after an unmeasured one."""
    for call in calls.values():
        jax.block_until_ready(call())
    return {k: min(timed(call)[0] for _ in range(2)) for k, call in calls.items()}


def dtype(codec):
    """Of what the codec computes in between codes and wave."""
    return (codec.decoder if codec.chunk is None else codec.dit).dtype


def measure(codec, job: dict) -> dict:
    """Rows of the report; see `speed`."""
    if job["single_codebook"]:
        return time_25hz(codec, job)
    return time_groups(codec, job) | time_12hz(codec, job)


def draw(job: dict) -> tuple[np.ndarray, np.ndarray]:
    """(codes int [T, Q] of so many seconds, float32 wave of as many)."""
    rng = np.random.default_rng(0)
    codes = rng.integers(0, job["codebook"], (job["codec_frames"], job["quantizers"]))
    return codes, rng.normal(0, 0.1, job["wave_samples"]).astype(np.float32)


# -------------------------------------------------------------------------------- 12Hz


def time_12hz(codec, job: dict) -> dict:
    """Seconds of decoding and encoding."""
    codes, wave = draw(job)
    return best(
        dict(
            seconds_decode=lambda: codec.decode([codes]),
            seconds_encode=lambda: codec.encode(wave, sr=job["wave_rate"]).audio_codes,
        )
    )


@functools.partial(jax.jit, donate_argnames="state")
def decode_group(decoder, codes, state):
    """One group of frames as streams decode it: see `Decoder.step`."""
    return decoder.step(codes, state)


def time_groups(codec, job: dict) -> dict:
    """Seconds per frame of the streaming codec, for groups of 1 and of 8 frames."""
    rng, seconds = np.random.default_rng(0), {}
    for size, times in GROUPS.items():
        codes = rng.integers(0, job["codebook"], (1, size, job["quantizers"]))
        codes, state = jnp.asarray(codes, jnp.int32), codec.empty_state()

        def groups(state, codes=codes, times=times):
            for _ in range(times):
                _, state = decode_group(codec.decoder, codes, state)
            return state

        with runtime.exact():
            _, state = timed(groups, state)
            least, _ = timed(groups, state)
        seconds[f"seconds_per_frame_codec_{size}"] = least / (size * times)
    return seconds


# -------------------------------------------------------------------------------- 25Hz


def voice(config) -> tuple[np.ndarray, np.ndarray]:
    """(x-vector [D] of length 1, reference mel [M, 80]) of nobody, float32."""
    rng = np.random.default_rng(1)
    vector = rng.normal(size=config.xvector_dim)
    mel = MEL_LEVEL + 2 * rng.normal(size=(REFERENCE_FRAMES, config.mel_bins))
    return np.float32(vector / np.linalg.norm(vector)), np.float32(mel)


@jax.jit
def make_codes(encoder, wave, length):
    """Int32 [B, T] of a wave: see `Qwen3TTSTokenizer25Hz.encode`."""
    mel = features.log_mel(wave, length, bins=encoder.config.mel_bins)
    mel = mel.astype(encoder.conv1.kernel[...].dtype)
    return encoder.codes(mel, features.code_count(length) * features.FRAMES_PER_CODE)


@jax.jit
def make_mel(dit, codes, length, speaker, noise):
    """Mel of codes: see `flow_matching.sample`."""
    return flow_matching.sample(dit, codes, length, speaker, noise)


@functools.partial(jax.jit, donate_argnames="state")
def make_wave(bigvgan, mel, state):
    """A chunk of mel: see `BigVGAN.step`."""
    return bigvgan.step(mel, state)


@functools.partial(jax.jit, donate_argnames="state")
def stream_packet(decoder, codes, count, state):
    """A packet of codes as streams decode it: see `Decoder.stream`."""
    return decoder.stream(codes, count, state)


def time_25hz(codec, job: dict) -> dict:
    """Seconds of decoding and encoding, of their parts, and of a stream's packet."""
    codes, wave = draw(job)
    vector, mel = voice(codec.config.dit)
    encoded = dict(audio_codes=codes[:, 0], xvectors=vector, ref_mels=mel)
    calls = dict(
        seconds_decode=lambda: codec.decode(encoded),
        seconds_encode=lambda: codec.encode(wave, sr=job["wave_rate"]).audio_codes,
    )
    parts = part_calls(codec, codes, wave, codec.condition(vector, mel).voice)
    with runtime.exact():
        found = best(calls | parts)
    exact = codec.streaming(lookahead=None)
    return found | dict(
        seconds_per_packet_codec=time_packet(codec, codes),
        seconds_per_packet_codec_exact=time_packet(exact, codes),
    )


def part_calls(codec, codes: np.ndarray, wave: np.ndarray, speaker) -> dict:
    """The parts of `encode` and `decode` by the names of their rows."""
    length, samples = np.int32([len(codes)]), np.int32([len(wave)])
    noise, codes = jax.random.key(0)[None], np.int32(codes[None, :, 0])
    size = codec_25hz.VOCODER_CHUNK
    frames = codes.shape[1] * codec.config.dit.repeats
    mel = np.full((1, size, codec.config.dit.mel_bins), MEL_LEVEL, np.float32)

    def vocode():
        state = codec.bigvgan.init_state(1)
        for _ in range(0, frames, size):
            wave, state = make_wave(codec.bigvgan, mel, state)
        return wave

    return dict(
        seconds_codes=lambda: make_codes(codec.encoder, wave[None], samples),
        seconds_dit=lambda: make_mel(codec.dit, codes, length, speaker, noise),
        seconds_bigvgan=vocode,
    )


def time_packet(codec, codes: np.ndarray) -> float:
    """Seconds of a stream's packet once sound comes: best of two."""
    part = np.int32(np.resize(codes[:, 0], codec.chunk))[None, :, None]
    count, state, samples = np.int32([codec.chunk]), codec.empty_state(), 0
    with runtime.exact():
        while not samples:  # codes that the first packet waits for; compiles too
            _, samples, state = stream_packet(codec.decoder, part, count, state)
            samples = int(samples[0])
        seconds = []
        for _ in range(CHUNKS):
            taken, (_, _, state) = timed(
                stream_packet, codec.decoder, part, count, state
            )
            seconds.append(taken)
    return min(seconds)
