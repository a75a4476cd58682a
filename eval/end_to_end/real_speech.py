"""From recordings to a voice: every stage of training on real speech, tiny sizes.

    python -m eval.end_to_end.real_speech --out DIR --root PACKAGES   asterisk, unpacked
    python -m eval.end_to_end.real_speech --out DIR --short           tests/recordings

prepare -> index -> S1 -> S2 -> S3 -> export -> fine-tune on one voice -> export ->
infer.py, each by the command that a user would give, with a random codec and a tiny
model: it shows that the road holds, not that the model speaks.  It fails where a
command fails or a loss does not fall.  Writes DIR/report.json.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import time

from qwen3tts_jax.training import metrics_writer

ROOT = pathlib.Path(__file__).parents[2]
CLIPS = ROOT / "tests" / "recordings" / "clips"
STAGES = ("s1", "s2", "s3")
ALL, VOICE = "en,it", "it"  # two voices; Carlo's is the one to learn
SHORT = dict(steps=12, warmup=2)  # of each stage
TEXT = "Il numero che ha chiamato non è al momento raggiungibile."


class Run:
    """Commands in turn, their times kept."""

    def __init__(self, out: pathlib.Path, *, short: bool):
        self.out, self.short = out, short
        self.seconds: dict[str, float] = {}
        self.losses: dict[str, tuple[float, float]] = {}

    def __call__(self, name: str, *command) -> str:
        """Run a program of the checkout; returns what it printed."""
        began = time.time()
        done = subprocess.run(
            [sys.executable, *map(str, command)],
            cwd=ROOT,
            text=True,
            capture_output=True,
        )
        self.seconds[name] = round(time.time() - began, 1)
        print(f"{name}: {self.seconds[name]} s", flush=True)
        if done.returncode:
            sys.exit(f"{name} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
        return done.stdout

    def corpus(self, name: str, where: list, source: pathlib.Path) -> pathlib.Path:
        """Recordings to shards and their index; returns the corpus."""
        out, codec = self.out / name, ["--codec", source, "--speaker", "mel"]
        size = ["--shard_clips", 256, "--out", out]
        self(f"prepare {name}", "-m", "data.prepare", *where, *codec, *size)
        index = ["-m", "data.index", "--data", out, "--text_tokenizer", source]
        self(f"index {name}", *index)
        return out

    def train(self, name: str, config: str, source, corpus, *flags) -> list:
        """A training stage; returns the command, to which flags can be added."""
        command = ["train.py", f"--config=configs/{config}"]
        command += [f"--config.model.source={source}", f"--config.data.corpus={corpus}"]
        command += [f"--workdir={self.out / name}", *flags]
        if self.short:
            command += [f"--config.optimizer.{k}={v}" for k, v in SHORT.items()]
            command += ["--config.log_every=4"]
        self(name, *command)
        lines = [
            line for line in metrics_writer.read(self.out / name) if "loss" in line
        ]
        first, last = (line["loss"] for line in (lines[0], lines[-1]))
        self.losses[name] = first, last
        print(f"  loss {first:.3f} -> {last:.3f}", flush=True)
        if not last < first:
            sys.exit(f"{name}: got a loss from {first} to {last}, expected it to fall")
        return command


def recordings(args, languages: str) -> list:
    """Flags of data.prepare for some languages."""
    if not args.short:
        return ["--source", "asterisk", "--root", args.root, "--languages", languages]
    return ["--folder", CLIPS if languages == ALL else CLIPS / languages]


def train_all(run: Run, args) -> None:
    """The whole road."""
    source, base, voice = (run.out / name for name in ("random", "base", "voice"))
    make = [
        "-m",
        "qwen3tts_jax.checkpoints.random_weights",
        "--size",
        "tiny",
        "--out",
        source,
    ]
    run("random codec", *make)
    corpus = run.corpus("corpus", recordings(args, ALL), source)
    before = []
    for stage in STAGES:
        config = f"pretrain.py:stage={stage},size=tiny"
        command = run.train(stage, config, source, corpus, *before)
        before = [f"--config.model.hand_over={run.out / stage}"]
    run("export base", *command, f"--export={base}")
    clips = run.corpus("clips", recordings(args, VOICE), source)
    command = run.train("finetune", "finetune.py:size=tiny", base, clips)
    run("export voice", *command, f"--export={voice}")
    speakers = json.loads((voice / "config.json").read_text())["talker_config"][
        "spk_id"
    ]
    speak = ["infer.py", "--model", voice, "--text", TEXT, "--language", "italian"]
    speak += ["--speaker", next(iter(speakers)), "--max_frames", 50]
    said = run("infer", *speak, "--out", run.out / "voice.wav")
    report = dict(
        seconds=run.seconds,
        total=round(sum(run.seconds.values()), 1),
        losses=run.losses,
        speakers=speakers,
        infer=json.loads(said.splitlines()[-1]),
    )
    (run.out / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    print(f"{report['total']} s in all; speakers {speakers}: {run.out / 'voice.wav'}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=pathlib.Path, required=True, help="a new directory"
    )
    parser.add_argument("--root", help="where the asterisk packages are unpacked")
    parser.add_argument("--short", action="store_true", help="few clips, few steps")
    args = parser.parse_args()
    if not args.short and not args.root:
        parser.error("got neither --root nor --short, expected one of them")
    if args.out.exists():
        parser.error(f"{args.out} is there already; give another name")
    args.out.mkdir(parents=True)
    train_all(Run(args.out.resolve(), short=args.short), args)


if __name__ == "__main__":
    main()
