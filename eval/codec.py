"""Recordings, what the codec leaves of them, and what other ways leave."""

import concurrent.futures
import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable

import jax
import numpy as np

from eval import scoring, test_sets
from eval.baselines import griffin_lim
from qwen3tts_jax import metrics, model, runtime
from qwen3tts_jax import speech_tokenizer as speech_tokenizers
from qwen3tts_jax.audio import io as audio_io

COUNTS = (16, 8, 4, 2, 1)  # codebooks that are kept
CHUNK = 32  # frames decoded at a time
FRAME_RATE = 12.5  # Hz


@dataclasses.dataclass(frozen=True)
class Made:
    """What a system makes of a clip.

    Attributes:
        wave: float32 [W], 24 kHz, as long as the clip.
        values: figures known from making it: bits_per_second.
    """

    wave: np.ndarray
    values: dict[str, float]


# A system takes (wave float32 [W], codes int32 [T, 16] or None) and gives Made.
System = Callable[[np.ndarray, np.ndarray | None], Made]


def systems(
    tokenizer=None, *, opus=None, mels: bool = True, seed: int = 0
) -> dict[str, System]:
    """name -> System, the recordings first.

    Args:
        tokenizer: Qwen3TTSTokenizer, or None for no codec.
        opus: the module `eval.baselines.opus`, or None for no Opus.
        mels: whether to invert mel spectrograms.
        seed: of their first phases.
    """
    found: dict[str, System] = {scoring.RECORDINGS: lambda wave, codes: Made(wave, {})}
    if tokenizer is not None:
        for count in COUNTS:
            found[codec_name(count)] = functools.partial(_codec, tokenizer, count)
    if opus is not None:
        name = f"Opus {opus.BIT_RATE / 1000:g} kbit/s"
        found[name] = functools.partial(_opus, opus)
    if mels:
        name = f"Griffin-Lim, {griffin_lim.BINS} mels"
        found[name] = functools.partial(_griffin_lim, seed)
    return found


def codec_name(count: int) -> str:
    return f"codec, {count} codebook{'s' * (count > 1)}"


def _codec(tokenizer, count: int, wave: np.ndarray, codes: np.ndarray) -> Made:
    bits = count * FRAME_RATE * math.log2(tokenizer.config.decoder.codebook_size)
    made = decode(tokenizer, codes[:, :count])
    return Made(made[: len(wave)], dict(bits_per_second=bits))


def _opus(opus, wave: np.ndarray, codes) -> Made:
    made, bits = opus.reconstruct(wave)
    return Made(made, dict(bits_per_second=bits * audio_io.SAMPLE_RATE / len(wave)))


def _griffin_lim(seed: int, wave: np.ndarray, codes) -> Made:
    return Made(griffin_lim.reconstruct(wave, seed=seed), {})


def decode(tokenizer, codes: np.ndarray) -> np.ndarray:
    """Float32 [T*1920] of the first codebooks alone, int [T, q], q from 1 to 16.

    The quantiser adds what codebooks say up: those that are left out say nothing.
    """
    if codes.shape[1] == tokenizer.config.quantizers:
        return tokenizer.decode([codes])[0][0]
    frames = len(codes)
    padded = np.pad(codes, ((0, -frames % CHUNK), (0, 0)))[None]  # causal: harmless
    state, waves = tokenizer.empty_state(), []
    for start in range(0, padded.shape[1], CHUNK):
        with runtime.exact():
            chunk = padded[:, start : start + CHUNK]
            wave, state = _step(tokenizer.decoder, chunk, state)
        waves.append(np.asarray(wave[0]))
    return np.concatenate(waves)[: frames * tokenizer.config.samples_per_frame]


_step = jax.jit(lambda decoder, codes, state: decoder.step(codes, state))


# ------------------------------------------------------------------------- the run


@dataclasses.dataclass
class Result:
    """All scores, the codes of all clips (None without a codec), some waves to keep."""

    scores: list[scoring.Score]
    codes: list[np.ndarray] | None
    samples: dict[tuple[str, str], np.ndarray]


def run(
    clips: list[test_sets.Clip],
    ways: dict[str, System],
    panel,
    *,
    tokenizer=None,
    keep: int = 3,
    workers: int = 1,
    log=print,
) -> Result:
    """Every system on every clip.

    Args:
        keep: clips whose waves are kept, to listen to; (id, system) -> wave.
        workers: clips that are judged side by side.
    """
    result = Result([], None if tokenizer is None else [], {})
    kept = {clip.id for clip in test_sets.spread(clips, keep, 0)} if keep else set()
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        work = [pool.submit(one, clip, ways, panel, tokenizer) for clip in clips]
        for number, (clip, done) in enumerate(zip(clips, work), 1):
            judged, codes, waves = done.result()
            result.scores += judged
            if codes is not None:
                result.codes.append(codes)
            if clip.id in kept:
                result.samples |= {(clip.id, name): w for name, w in waves.items()}
            if number % 10 == 0 or number == len(clips):
                log(f"{number} of {len(clips)} clips")
    return result


def one(clip: test_sets.Clip, ways: dict[str, System], panel, tokenizer) -> tuple:
    """(scores, codes or None, system -> wave) of one clip."""
    wave, codes = audio_io.load(clip.audio), None
    if tokenizer is not None:
        codes = tokenizer.encode((wave, audio_io.SAMPLE_RATE)).audio_codes[0]
    item = scoring.Item(clip.id, clip.text, clip.language, clip.source, clip.speaker)
    judged, waves = [], {}
    for name, make in ways.items():
        made = make(wave, codes)
        values = dict(made.values)
        if name != scoring.RECORDINGS:
            values |= scoring.compare(panel, wave, made.wave)
        judged.append(scoring.judge(panel, item, name, made.wave, **values))
        waves[name] = made.wave
    return judged, codes, waves


def codebooks(codes: list[np.ndarray], size: int) -> dict:
    """Use of each codebook over all clips: used, perplexity (lists), chance, frames."""
    together = np.concatenate(codes)
    use = metrics.codebook_use(together, size)
    return dict(
        frames=len(together),
        size=size,
        chance=use.chance,
        used=use.used.tolist(),
        perplexity=use.perplexity.tolist(),
    )


def load(path: str) -> speech_tokenizers.Qwen3TTSTokenizer:
    """The codec of a directory or hub id: a tokenizer, or a TTS checkpoint with one."""
    inside = pathlib.Path(path) / model.SPEECH_TOKENIZER
    where = str(inside if inside.is_dir() else path)
    return speech_tokenizers.Qwen3TTSTokenizer.from_pretrained(where)
