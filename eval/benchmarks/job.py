"""The job of `speed` and `latency`: a checkpoint, and what to do with it."""

import pathlib
import subprocess
import sys

from qwen3tts_jax import model
from qwen3tts_jax.checkpoints import hub
from qwen3tts_jax.codecs import codec_25hz
from qwen3tts_jax.config import tokenizer_12hz, tokenizer_25hz, tts
from qwen3tts_jax.models.tokenizer_25hz import flow_matching
from qwen3tts_jax.serving import engine

ROOT = pathlib.Path(__file__).resolve().parents[2]
REFERENCE = "tests/recordings/allison_en.flac"  # for Base
TEXT = "The ship left the harbour at dawn, and nobody on the pier waved it goodbye."
STREAM_SECONDS = 1.92  # 24 frames at 12.5 Hz


def checkpoint(chosen: str | None, size: str, variant: str, path: pathlib.Path):
    """The directory to load, read through once so that it is in the page cache.

    chosen: directory or hub id; None: random weights, written to `path`.
    """
    if chosen:
        path = hub.resolve(chosen).resolve()
    else:  # another process: a child's peak memory starts from its parent's
        command = [sys.executable, "-m", "qwen3tts_jax.checkpoints.random_weights"]
        command += ["--size", size, "--variant", variant, "--out", str(path)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise ValueError(done.stderr.strip().splitlines()[-1])
    for weights in path.rglob("*.safetensors"):
        with weights.open("rb") as file:
            while file.read(2**24):
                pass
    return path


def make_job(args, path: pathlib.Path) -> dict:
    """What all sides are told to do."""
    config = tts.Qwen3TTSConfig.from_hf(hub.read_json(path / "config.json"))
    return dict(
        model=str(path),
        size=config.size,
        frame_rate=config.frame_rate,
        single_codebook=config.single_codebook,
        dtype=args.dtype,
        weights=None,
        threads=args.threads,
        seed=0,
        frames=args.frames,
        device="cpu",
        request=request_of(config, TEXT, "english"),
        options=dict(do_sample=False, subtalker_dosample=False),
        **codec_job(args.codec_seconds, path, config),
        **stream_job(args, path, config),
    )


def request_of(config: tts.Qwen3TTSConfig, text: str, language: str) -> dict:
    """What the checkpoint is asked to say."""
    own = dict(
        base=dict(ref_audio=REFERENCE, x_vector_only_mode=True),
        custom_voice=dict(speaker=next((n for n, _ in config.talker.speaker_ids), "")),
        voice_design=dict(instruct="A calm and low voice."),
    )[config.variant]
    return dict(text=text, language=language) | own


def codec_values(path: pathlib.Path) -> dict:
    """The speech tokenizer's config.json."""
    return hub.read_json(path / model.SPEECH_TOKENIZER / "config.json")


def codec_job(seconds: float, path: pathlib.Path, config) -> dict:
    """What the codec is to do."""
    if config.single_codebook:
        codec = tokenizer_25hz.Tokenizer25HzConfig.from_hf(codec_values(path))
        size, quantizers = codec.dit.codes, 1
    else:
        codec = tokenizer_12hz.Tokenizer12HzConfig.from_hf(codec_values(path))
        size, quantizers = codec.decoder.codebook_size, codec.quantizers
    return dict(
        codebook=size,
        quantizers=quantizers,
        codec_seconds=seconds,
        codec_frames=max(1, round(seconds * config.frame_rate)),
        wave_rate=codec.input_sample_rate,
        wave_samples=round(seconds * codec.input_sample_rate),
    )


def stream_job(args, path: pathlib.Path, config) -> dict:
    """Groups and length of streams.

    Raises: ValueError for groups that the codec does not decode, or too few frames.
    """
    frames = args.stream_frames or round(STREAM_SECONDS * config.frame_rate)
    if config.single_codebook:
        codec = tokenizer_25hz.Tokenizer25HzConfig.from_hf(codec_values(path))
        usual = [flow_matching.window_codes(codec.dit, 0)]
        first = flow_matching.window_codes(codec.dit, codec_25hz.LOOKAHEAD)
    else:
        usual, first = [*engine.SCHEDULE], (args.schedule or engine.SCHEDULE)[0]
    schedule = args.schedule or usual
    if config.single_codebook and schedule != usual:
        raise ValueError(
            f"got --schedule {','.join(map(str, schedule))} with a 25Hz checkpoint, "
            f"expected {usual[0]}, the codes that become sound at once: leave it out"
        )
    if frames <= first:
        raise ValueError(
            f"got --stream_frames {frames}, expected more than the first packet's "
            f"{first}"
        )
    return dict(stream_frames=frames, schedule=schedule)
