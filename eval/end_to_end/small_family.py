"""The small family, from packages to a checkpoint that speaks, in one command.

    pip install '.[corpus,eval]'
    python -m eval.end_to_end.small_family --out DIR                 two CPU cores
    python -m eval.end_to_end.small_family --out DIR --device gpu    one GPU

corpus -> waves and teacher -> codec (in pieces: mel, vocoder, join, encoder, decoder;
then adversarial) -> its export -> text vocabulary -> codes -> S1 -> S2 -> export with
voices -> figures, each by the command that a user would give.  What is done is not done
again: a run that was stopped goes on where it was.  --minutes stops a training at the
next checkpoint after so long and ends the program; start it again to go on (for
machines with a time limit).

DIR/checkpoint is the family; what the judges say of it is in DIR/figures.
"""

import argparse
import json
import pathlib
import shutil
import signal
import subprocess
import sys

from data.preparation import whisper_files
from data.small_family import passages
from data.small_family import reading_plan as plan
from qwen3tts_jax import model

ROOT = pathlib.Path(__file__).parents[2]
HELD_OUT = ROOT / "data" / "small_family" / "held_out"
RANDOM = ("-m", "qwen3tts_jax.checkpoints.random_weights", "--size", "small")
# stage -> where its parts come from
CODEC_STAGES = (
    ("mel", {}),
    ("vocoder", {}),
    ("join", dict(hand_over="mel", decoder="vocoder")),
    ("encoder", dict(hand_over="join")),
    ("decoder", dict(hand_over="encoder")),
    ("gan", dict(hand_over="decoder")),
)
# (share, pattern over a clip's source): what will be spoken, and studio recordings
CODEC_POOLS = ((0.6, "^kokoro"), (0.4, "^asterisk"))
DONE = "done"  # folder of a mark for every stage that has come to its end


class Stopped(Exception):
    """A training has used its minutes."""


class Run:
    """Commands in turn; one that came to its end is not run again."""

    def __init__(self, out: pathlib.Path, *, device: str, minutes: float | None):
        self.out, self.device, self.minutes = out, device, minutes

    def __call__(self, name: str, *command, seconds: float | None = None) -> None:
        """Run a program of the checkout.

        Raises: Stopped when it was told to stop after `seconds`, and did.
        """
        mark = self.out / DONE / name
        if mark.exists():
            return
        print(f"== {name}", flush=True)
        program = subprocess.Popen([sys.executable, *map(str, command)], cwd=ROOT)
        try:
            code = program.wait(seconds)
        except subprocess.TimeoutExpired:
            program.send_signal(signal.SIGTERM)  # it saves, and says at which step
            program.wait()
            raise Stopped(name) from None
        if code:
            sys.exit(f"{name} failed (exit code {code}); start again to go on")
        mark.parent.mkdir(exist_ok=True)
        mark.touch()

    def train(self, name: str, config: str, **fields) -> list:
        """A training; returns its command, to which flags can be added.

        Args:
            config: as codec.py:stage=warm.
            fields: of the configuration, with __ for a dot.
        """
        command = ["train.py", f"--workdir={self.out / name}"]
        command += [f"--config=configs/{config},size=small,device={self.device}"]
        command += [
            f"--config.{key.replace('__', '.')}={value}"
            for key, value in fields.items()
        ]
        self(name, *command, seconds=self.minutes and 60 * self.minutes)
        return command


def make_codec(run: Run) -> pathlib.Path:
    """Waves, all stages, export; returns the codec's directory."""
    corpus, codec = run.out / "corpus", run.out / "codec"
    whisper = whisper_files.assemble(corpus / "packages" / "whisper-base")
    folders = {}
    for part in ("manifest", "held_out"):
        folders[part] = run.out / "waves" / part
        run(
            f"waves-{part}",
            *("-m", "data.waves", "--manifest", corpus / f"{part}.jsonl"),
            *("--out", folders[part], "--teacher", "whisper", "--teacher_dir", whisper),
        )
    data = dict(data__waves=folders["manifest"], data__held_out=folders["held_out"])
    data["data__pools"] = CODEC_POOLS
    for stage, earlier in CODEC_STAGES:
        fields = {f"model__{field}": run.out / name for field, name in earlier.items()}
        command = run.train(stage, f"codec.py:stage={stage}", **data, **fields)
    run("export-codec", *command, f"--export={codec}")
    return codec


def make_language_model(
    run: Run, codec: pathlib.Path, chosen: dict[str, tuple[str, ...]]
) -> pathlib.Path:
    """Vocabulary, codes, S1, S2, export; returns the checkpoint's directory."""
    out = run.out
    speech, vocabulary = out / "speech.jsonl", out / "vocabulary"
    source, codes, checkpoint = out / "source", out / "codes", out / "checkpoint"
    choose_speech(out / "corpus" / "manifest.jsonl", speech, tuple(chosen))
    run(
        "vocabulary",
        *("-m", "data.small_family.vocabulary", "--manifest", speech, "--out"),
        vocabulary,
    )
    run("random", *RANDOM, "--out", out / "random", "--text_tokenizer", vocabulary)
    join(out / "random", codec, source)
    run(
        "codes",
        *("-m", "data.prepare", "--manifest", speech, "--codec", codec),
        *("--speaker", "mel", "--out", codes),
    )
    run("index", *("-m", "data.index", "--data", codes, "--text_tokenizer", vocabulary))
    data = dict(model__source=source, data__corpus=codes)
    run.train("s1", "pretrain.py:stage=s1", **data)
    data["model__hand_over"] = out / "s1"
    command = run.train("s2", "pretrain.py:stage=s2", **data)
    command += [f"--config.model.export_voices={voices(chosen)!r}"]
    run("export", *command, f"--export={checkpoint}")
    return checkpoint


def join(random: pathlib.Path, codec: pathlib.Path, source: pathlib.Path) -> None:
    """A random checkpoint whose codec is the trained one, to start training from."""
    if source.exists():
        return
    part = source.with_name(f".{source.name}")
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(random, part)
    shutil.rmtree(part / model.SPEECH_TOKENIZER)
    shutil.copytree(codec, part / model.SPEECH_TOKENIZER)
    part.rename(source)


def choose_speech(
    manifest: pathlib.Path, out: pathlib.Path, languages: tuple[str, ...]
) -> None:
    """The clips in languages that the family speaks, as a manifest beside the other."""
    lines = [json.loads(line) for line in manifest.read_text("utf-8").splitlines()]
    kept = [line for line in lines if line["language"] in languages]
    for line in kept:
        line["audio"] = str(manifest.parent / line["audio"])
    plan.write_lines(out, kept)


def voices(chosen: dict[str, tuple[str, ...]] = plan.VOICES) -> tuple[str, ...]:
    """Those that read, under Kokoro's names: the first is the default."""
    names = [name for found in chosen.values() for name in found]
    return tuple(f"{name}=kokoro/{name}" for name in names)


def judge(run: Run, codec: pathlib.Path, checkpoint: pathlib.Path) -> None:
    """The figures of both."""
    clips = ("--clips", run.out / "corpus" / "held_out.jsonl")
    common = (*clips, "--out", run.out / "figures")
    run("judge-codec", *("-m", "eval.run", "codec", "--model", codec), *common)
    texts = ("--texts", HELD_OUT / "sentences.jsonl", "--long", HELD_OUT / "long.jsonl")
    run(
        "judge-voice",
        *("-m", "eval.run", "voice", "--model", checkpoint, *texts, *common),
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--out", type=pathlib.Path, required=True, help="everything is kept there")
    add("--hours", type=float, default=11.0, help="of synthesised speech [11]")
    add("--languages", nargs="+", default=passages.TRAINED, help="that it speaks [all]")
    add("--voices", nargs="+", default=(), help="names of Kokoro's that it has [all]")
    add("--workers", type=int, default=2, help="processes that read texts aloud [2]")
    add("--device", choices=("cpu", "gpu"), default="cpu", help="what it trains on")
    add("--minutes", type=float, help="most of one training, before the program ends")
    args = parser.parse_args()
    chosen = plan.choose_voices(args.languages, args.voices)
    run = Run(args.out.resolve(), device=args.device, minutes=args.minutes)
    corpus = ["-m", "data.small_family.corpus", "--out", run.out / "corpus"]
    corpus += ["--hours", args.hours, "--workers", args.workers]
    corpus += ["--languages", *chosen]
    if args.voices:
        corpus += ["--voices", *args.voices]
    try:
        run("corpus", *corpus)
        codec = make_codec(run)
        judge(run, codec, make_language_model(run, codec, chosen))
    except Stopped as stopped:
        print(f"{stopped} has used its minutes and is saved; start again to go on")


if __name__ == "__main__":
    main()
