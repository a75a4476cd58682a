"""Speak one text with a Qwen3-TTS 12Hz checkpoint and write a 24 kHz WAV file.

The last line on stdout is a JSON object; progress and errors go to stderr.
Official weights: --model Qwen/Qwen3-TTS-12Hz-0.6B-Base downloads them when first used
(`hf download Qwen/Qwen3-TTS-12Hz-0.6B-Base --local-dir DIR` does so beforehand).
Without them, make random weights of the real 0.6B configuration, and hear their noise:

    python -m qwen3tts_jax.random_checkpoint --size 0.6B --variant base --out DIR
    python infer.py --model DIR --text "Hello." --max_frames 50 \\
        --ref_audio tests/recordings/allison_en.flac --ref_text "Your call is now \
first in line and will be answered by the next available representative."
"""

import argparse
import json
import os
import pathlib
import secrets
import sys
import tempfile
import time

import jax
import numpy as np

from qwen3tts_jax import audio, hf, model, prompt, sampling
from qwen3tts_jax import config as configs

FRAME_RATE = 12.5  # Hz
SAMPLING = dict(temperature=float, top_k=int, top_p=float)  # flags for both heads
CLONING = dict(ref_audio="Base", ref_text="Base", x_vector_only="Base")
USED_BY = dict(CLONING, speaker="CustomVoice", instruct="VoiceDesign or 1.7B CustomVoice")


def refuse(bad: bool, message: str) -> None:
    if bad:
        raise ValueError(message)


def check_request(args) -> dict:
    """Refuse what no checkpoint can do, fill in text and seed; returns the options."""
    if file := args.text_file:
        refuse(not file.is_file(), f"got --text_file {str(file)!r}, expected a file")
        args.text = file.read_text("utf-8-sig", "replace").strip()
        refuse("\ufffd" in args.text, f"got {str(file)!r}, expected UTF-8; convert it")
    refuse(not (args.text or "").strip(), f"got text {args.text!r}; give --text words")
    args.seed = secrets.randbits(31) if args.seed is None else args.seed
    refuse(not 0 <= args.seed < 2**32, f"got --seed {args.seed}, expected 0 to 2**32-1")
    frames, draws = args.max_frames, False if args.greedy else None
    refuse(frames is not None and frames < 1, f"got --max_frames {frames}, expected 1+")
    refuse(args.temperature == 0, "got --temperature 0; to draw nothing give --greedy")
    given = {name: v for name in SAMPLING if (v := getattr(args, name)) is not None}
    refuse(args.greedy and given, f"got --greedy and --{' --'.join(given)}; drop one")
    for out in filter(None, (args.out, args.codes_out)):
        good = os.access(out.parent, os.W_OK) and not out.is_dir()
        refuse(not good, f"got {str(out)!r}, expected a file in a folder to write to")
    return given | {f"subtalker_{name}": v for name, v in given.items()} | dict(
        do_sample=draws,
        subtalker_dosample=draws,
        repetition_penalty=args.repetition_penalty,
        max_new_tokens=frames and frames + 1,
    )


def check_variant(args, config: configs.Qwen3TTSConfig) -> str:
    """Refuse what this checkpoint cannot do; returns its name, as "0.6B Base"."""
    size = config.size.replace("b", ".") + "B"  # 0b6, 1b7
    name = f"{size} {config.variant.title().replace('_', '')}"
    for flag, users in USED_BY.items():
        unused = getattr(args, flag) and not name.endswith(tuple(users.split(" or ")))
        refuse(unused, f"got --{flag} with a {name} model; only {users} can use it")
    prompt.language_id(config.talker, args.language, None)
    if config.variant == "custom_voice":
        prompt.speaker_id(config.talker, args.speaker or "(none: give --speaker)")
    if config.variant == "base":
        refuse(not args.ref_audio, f"got no --ref_audio; {name} needs a voice to clone")
        mute = not args.x_vector_only and not (args.ref_text or "").strip()
        refuse(mute, "got no --ref_text, what --ref_audio says; or add --x_vector_only")
        args.ref_audio = audio.read(args.ref_audio)
    return name


def speak(args) -> dict:
    """From arguments to files; returns what the last line of stdout says."""
    options, path = check_request(args), hf.resolve(args.model)
    config = configs.Qwen3TTSConfig.from_hf(hf.read_json(path / "config.json"))
    name = check_variant(args, config)
    sampling.Options.merge(options, hf.read_json(path / "generation_config.json"))
    print(f"loading {name} from {path}", file=sys.stderr)
    bundle = model.Qwen3TTSModel.from_pretrained(path, dtype=args.dtype)
    what = args.text, args.language
    if config.variant == "base":
        how = args.ref_audio, args.ref_text, args.x_vector_only
        voice = bundle.create_voice_clone_prompt(*how)
        utterances = bundle.voice_clone_utterances(*what, voice_clone_prompt=voice)
        print("reference analysed", file=sys.stderr)
    elif config.variant == "custom_voice":
        voice = dict(speaker=args.speaker, instruct=args.instruct)
        utterances = bundle.custom_voice_utterances(*what
    start = time.perf_counter()
