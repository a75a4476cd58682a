"""Speak one text and write a 24 kHz WAV file:  python infer.py --text "Hello."

The last line is a JSON object; the rtf of a first run counts its compiling.  Without
--model the small family speaks that comes with the package, where it does.
Official weights: --model Qwen/Qwen3-TTS-12Hz-0.6B-Base downloads them when first used
(`hf download Qwen/Qwen3-TTS-12Hz-0.6B-Base --local-dir DIR` does so beforehand).
Without them, make random weights of the real 0.6B configuration, and hear their noise:

    python -m qwen3tts_jax.checkpoints.random_weights --size 0.6B \\
        --variant base --out DIR
    python infer.py --model DIR --text "Hello." --max_frames 50 \\
        --ref_audio tests/recordings/allison_en.flac --ref_text "Your call is now \
first in line and will be answered by the next available representative."
"""

import argparse
import json
import pathlib
import secrets
import sys
import time

from qwen3tts_jax import model
from qwen3tts_jax.audio import io as audio_io
from qwen3tts_jax.audio import writers
from qwen3tts_jax.checkpoints import hub
from qwen3tts_jax.config import tts
from qwen3tts_jax.generation import prompt, sampling, voice_clone
from qwen3tts_jax.serving import session

SAMPLING = dict(temperature=float, top_k=int, top_p=float)  # flags for both heads
USED_BY = dict(ref_audio="Base", ref_text="Base", x_vector_only="Base") | dict(
    speaker="CustomVoice or Base", instruct="VoiceDesign or 1.7B CustomVoice"
)


def refuse(bad: bool, message: str) -> None:
    if bad:
        raise ValueError(message)


def check_request(args) -> dict:
    """Refuse what no checkpoint can do, read the text; returns sampling options."""
    if file := args.text_file:
        args.text = file.read_text("utf-8-sig", "replace").strip()
        refuse("\ufffd" in args.text, f"got {str(file)!r}, expected UTF-8; convert it")
    refuse(not args.text, f"got text {args.text!r}; give some in --text or --text_file")
    refuse(not 0 <= args.seed < 2**32, f"got --seed {args.seed}, expected 0 to 2**32-1")
    frames, tokens = args.max_frames, args.max_frames and args.max_frames + 1
    refuse(frames is not None and frames < 1, f"got --max_frames {frames}, expected 1+")
    refuse(args.temperature == 0, "got --temperature 0; to draw nothing give --greedy")
    given = {name: v for name in SAMPLING if (v := getattr(args, name)) is not None}
    refuse(args.greedy and given, f"got --greedy and --{' --'.join(given)}; drop one")
    writers.check(args.out, args.codes_out)
    both = given | {f"subtalker_{name}": value for name, value in given.items()}
    both["do_sample"] = both["subtalker_dosample"] = False if args.greedy else None
    return dict(both, repetition_penalty=args.repetition_penalty, max_new_tokens=tokens)


def check_variant(args, path: pathlib.Path) -> tuple[str, dict]:
    """Refuse what this checkpoint cannot do; returns its name and its own arguments."""
    config = tts.Qwen3TTSConfig.from_hf(hub.read_json(path / "config.json"))
    size, voice = config.size.replace("b", ".") + "B", {}  # 0b6, 1b7
    kind = config.variant.title().replace("_", "")
    name = "25Hz " * config.single_codebook + f"{size} {kind}"
    for flag, users in USED_BY.items():
        value, usable = getattr(args, flag), name.endswith(tuple(users.split(" or ")))
        only = f"got --{flag} with a {name} model; only {users} can use it"
        refuse(value and not usable, only)
        voice |= {flag: value} if usable else {}
    prompt.language_id(config.talker, args.language, None)
    if config.variant == "custom_voice":
        prompt.speaker_id(config.talker, args.speaker or "(none: give --speaker)")
    voices = voice_clone.read_voices(path, config)
    if config.variant == "base":
        voice["x_vector_only_mode"] = voice.pop("x_vector_only")
        voice_clone.check(voices, **voice)
        voice |= dict(ref_audio=audio_io.read(args.ref_audio)) if args.ref_audio else {}
    return name, voice


def speak(args) -> dict:
    """From arguments to files; returns what the last line says."""
    options, path = check_request(args), hub.resolve(args.model, weights=False)
    name, voice = check_variant(args, path)
    sampling.Options.merge(options, hub.read_json(path / "generation_config.json"))
    print(f"loading {name} from {args.model or path}", file=sys.stderr)
    settings = dict(dtype=args.dtype, weights=args.weights)
    bundle = model.Qwen3TTSModel.from_pretrained(args.model, **settings)
    voice = bundle.voice(language=args.language, **voice)
    print("reference analysed" if args.ref_audio else "loaded", file=sys.stderr)
    start, options["seed"], first = time.perf_counter(), args.seed, {}

    def report(frames: int, rate: float = bundle.config.frame_rate) -> dict:
        seconds, wall = frames / rate, round(time.perf_counter() - start, 3)
        rtf = round(wall / seconds, 3)  # with the compiling that a first run needs
        print(f"{frames} frames, {seconds:.1f} s, RTF {rtf:.2f}", file=sys.stderr)
        return dict(frames=frames, audio_seconds=seconds, wall_seconds=wall, rtf=rtf)

    with writers.open_sound(args.out, growing=args.stream) as out:
        if args.stream:
            speech = session.StreamingSession(bundle, voice, **options)
            for chunk in speech.speak(args.text):
                out.write(chunk)
                now = report(len(speech.codes))["wall_seconds"]
                first = first or dict(first_sound_seconds=now)
        else:
            spoken = [bundle.utterance(args.text, voice)]
            [speech] = bundle.speak(spoken, on_progress=report, **options)
            out.write(speech.wave)
        if args.codes_out:
            writers.write_npy(args.codes_out, speech.codes)
    result = report(len(speech.codes)) | first | dict(stop_reason=speech.stop_reason)
    return result | dict(seed=args.seed, model=name, out=str(args.out))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser("infer.py", argparse.SUPPRESS, __doc__)  # no usage
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add, path = parser.add_argument, pathlib.Path
    text = parser.add_mutually_exclusive_group()
    text.add_argument("--text", type=str.strip, help="what to say, as one utterance")
    text.add_argument("--text_file", type=path, help="UTF-8 file that holds it")
    add("--model", help="checkpoint directory, or hub id; default: ours")
    add("--language", default=prompt.AUTO, help="of the text; default: %(default)s")
    add("--speaker", help="CustomVoice, Base with voices: one of them")
    add("--instruct", help="VoiceDesign, 1.7B CustomVoice: voice or manner, in words")
    add("--ref_audio", help="Base: recording to clone; path, http(s) address or base64")
    add("--ref_text", type=str.strip, help="Base: what it says, word for word")
    add("--x_vector_only", action="store_true", help="Base: clone without ref_text")
    add("--out", type=path, default="out.wav", help="WAV; - is PCM to stdout")
    add("--stream", action="store_true", help="write sound while it is made")
    add("--codes_out", type=path, help=".npy file for the codes, int32 [T, 16 or 1]")
    add("--seed", type=int, default=secrets.randbits(31), help="default: a fresh one")
    add("--greedy", action="store_true", help="draw nothing, in either head")
    add("--max_frames", type=int, help="of 80 ms, at 25 Hz 40; default: a guard")
    add("--dtype", choices=("float32", "bfloat16"), help="default: float32 on CPU only")
    add("--weights", choices=("int8", "float8"), help="in one byte each: not exact")
    add("--repetition_penalty", type=float, help="on codebook 0; 1 for none")
    for name, kind in SAMPLING.items():
        add(f"--{name}", type=kind, help="for both heads: talker and code predictor")
    args = parser.parse_args(argv)
    if not (args.model or hub.packaged()):
        parser.error(f"got no --model, expected a directory or a hub id\n\n{__doc__}")
    try:
        result = json.dumps(speak(args))
        print(result, file=sys.stderr if str(args.out) == writers.PIPE else sys.stdout)
    except (OSError, TypeError, ValueError) as error:
        parser.error(" ".join(str(error).split()))
    except KeyboardInterrupt:
        parser.exit(130, "infer.py: interrupted\n")


if __name__ == "__main__":
    main()
