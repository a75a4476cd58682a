"""Speed of generation and codec, beside what the memory allows and, with
`--against official`, beside the official PyTorch package on the same checkpoint.

    python -m eval.speed --size 0.6B --threads 2 --against official --out DIR

Without --model the weights are random, at their real size: speed does not depend on
them.  Both sides do the same work: one text, greedy in both heads, exactly --frames
frames, for the end token's row of the codec head is set to zero after loading (and the
frames are counted).  They run in turn, so that a drift of the machine shows, each in a
process of its own that may use the first --threads processors only.  Time on a machine
that does nothing else.  Linux only.

- generation: a run of many frames less a run of two, so that the prompt does not count.
- code predictor: ours in a loop of its own; official: a stopwatch in the same run.
- talker: ours without the predictor; official: the rest of the frame.  Ours are timed
  apart from the frame, so that their sum may miss it, by the row `less these two`.
- prefill: the short run less its two frames.
- compile: the first run less the same run later.
- codec: 10 s through `Qwen3TTSTokenizer.decode` and `.encode`, best of two.
- peak memory: of a process that has loaded, made frames and decoded them once, with the
  pages of the weight file that it maps.
- first frame: from the start of a process, without and with programs that another such
  process has left in the persistent compilation cache (every program is kept).
- floor: bytes of the weights that one frame reads (the talker's stack and codec head
  once, the predictor's stack and projection 15 times, each of its heads once) over the
  rate of a float32 vector-matrix product.  Caches and embedding rows are left out.
"""

import argparse
import datetime
import json
import os
import pathlib
import shlex
import subprocess
import sys
import tempfile
import time

from eval import our_speed, speed_report
from qwen3tts_jax import config as configs
from qwen3tts_jax import hf, model, released

ROOT = pathlib.Path(__file__).resolve().parents[1]
REFERENCE = "tests/recordings/allison_en.flac"  # for Base
TEXT = "The ship left the harbour at dawn, and nobody on the pier waved it goodbye."
FRAME_SECONDS = 0.08
CODEC_SECONDS = 10
OFFICIAL = ROOT / "eval" / "official_speed.py"
INSTALL = (
    "`pip install torch transformers==4.57.3 accelerate einops librosa onnxruntime "
    "soundfile` and `pip install --no-deps qwen-tts==0.1.1 torchaudio sox`"
)
KEEP_EVERY_PROGRAM = dict(
    JAX_ENABLE_COMPILATION_CACHE="true",
    JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
    JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES="-1",
)


def busy_seconds() -> float:
    """Processor seconds that this machine has worked since it started."""
    line = pathlib.Path("/proc/stat").read_text().split("\n", 1)[0]
    user, nice, system, _, _, *others = map(int, line.split()[1:9])  # not: idle, I/O
    return (user + nice + system + sum(others)) / os.sysconf("SC_CLK_TCK")


def run(command: list[str], job: dict, **environment: str) -> dict:
    """What one process reports; also how busy the machine was with other work.

    Adds load_average_before; others: processors at work elsewhere, averaged over the
    run; started: seconds since 1970.
    """
    times = os.times()
    own, busy, started = -sum(times[2:4]), -busy_seconds(), time.time()
    load = os.getloadavg()[0]
    done = subprocess.run(
        [*command, json.dumps(job)],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"{shlex.join(command)} failed:\n{done.stderr[-3000:]}")
    own += sum(os.times()[2:4])
    others = max(0.0, busy + busy_seconds() - own) / (time.time() - started)
    notes = dict(load_average_before=load, others=others, started=started)
    return json.loads(done.stdout.splitlines()[-1]) | notes


def commands(args) -> dict[str, list[str]]:
    """Side -> command that takes a job; each side has been found to work."""
    found = dict(ours=[sys.executable, "-m", "eval.our_speed"])
    if args.against:
        found["official"] = [args.official_python, str(OFFICIAL)]
        try:
            run(found["official"], dict(task="check", threads=1, device="cpu"))
        except (OSError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[-1]
            raise ValueError(
                f"got --official_python {args.official_python}, which cannot import "
                f"qwen_tts ({reason}); in an environment of its own {INSTALL}, and "
                "name its Python by --official_python or QWEN_TTS_PYTHON"
            ) from error
    return found


def checkpoint(args, folder: str) -> pathlib.Path:
    """The directory to load, read through once so that it is in the page cache."""
    path = pathlib.Path(folder) / "checkpoint"
    if args.model:
        path = hf.resolve(args.model).resolve()
    else:  # another process: a child's peak memory starts from its parent's
        command = [sys.executable, "-m", "qwen3tts_jax.random_checkpoint"]
        command += ["--size", args.size, "--variant", args.variant, "--out", str(path)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise ValueError(done.stderr.strip().splitlines()[-1])
    for weights in path.rglob("*.safetensors"):
        with weights.open("rb") as file:
            while file.read(2**24):
                pass
    return path


def make_job(args, path: pathlib.Path) -> dict:
    """What both sides are told to do."""
    config = configs.Qwen3TTSConfig.from_hf(hf.read_json(path / "config.json"))
    codec = configs.Tokenizer12HzConfig.from_hf(
        hf.read_json(path / model.SPEECH_TOKENIZER / "config.json")
    )
    request = dict(text=TEXT, language="english")
    request |= dict(
        base=dict(ref_audio=REFERENCE, x_vector_only_mode=True),
        custom_voice=dict(speaker=next((n for n, _ in config.talker.speaker_ids), "")),
        voice_design=dict(instruct="A calm and low voice."),
    )[config.variant]
    return dict(
        model=str(path),
        dtype=args.dtype,
        threads=args.threads,
        frames=args.frames,
        device="cpu",
        request=request,
        options=dict(do_sample=False, subtalker_dosample=False),
        codebook=codec.decoder.codebook_size,
        codec_frames=round(CODEC_SECONDS / FRAME_SECONDS),
        wave_rate=codec.input_sample_rate,
        wave_samples=CODEC_SECONDS * codec.input_sample_rate,
    )


def measure_in_turn(sides: dict[str, list[str]], job: dict, rounds: int) -> list[dict]:
    """Reports of ours, official, ours, official, ..., then of the starts."""
    reports = []

    def add(side: str, task: str, n: int, **environment: str) -> None:
        print(f"{side}: {task} {n}", file=sys.stderr)
        report = run(sides[side], job | dict(task=task), **environment)
        if report["device"] == "gpu":  # ours goes first and finds it
            job["device"] = "cuda:0"
        reports.append(derived(report) | dict(side=side, task=task, n=n))

    for n in range(1, rounds + 1):
        for side in sides:
            add(side, "measure", n, JAX_ENABLE_COMPILATION_CACHE="false")
    with tempfile.TemporaryDirectory() as cache:
        for n in (1, 2):  # the second finds what the first has compiled
            keep = dict(KEEP_EVERY_PROGRAM, JAX_COMPILATION_CACHE_DIR=cache)
            add("ours", "start", n, **keep)
    if "official" in sides:
        add("official", "start", 1)
    return reports


def derived(report: dict) -> dict:
    """The report with what follows from it."""
    if "first_frame_at" in report:
        seconds = report["first_frame_at"] - report["started"]
        return report | dict(seconds_first_frame=seconds)
    frame = report["seconds_per_frame"]
    predictor = report["seconds_per_frame_predictor"]
    rtf = frame / FRAME_SECONDS
    return report | dict(
        seconds_per_frame_rest=frame - predictor - report["seconds_per_frame_talker"],
        rtf_generation=rtf,
        rtf_speech=rtf + report["seconds_decode_10s"] / CODEC_SECONDS,
    )


def compare(args) -> dict:
    """Everything that metrics.json holds."""
    load_at_start = os.getloadavg()[0]
    sides = commands(args)
    with tempfile.TemporaryDirectory() as folder:
        job = make_job(args, checkpoint(args, folder))
        reports = measure_in_turn(sides, job, args.rounds)
    del job["model"]  # the command names it
    return dict(
        rows=speed_report.summarise(reports),
        floor=speed_report.floor(reports),
        agreeing_frames=speed_report.agreeing_frames(reports),
        warnings=speed_report.warnings(load_at_start, reports),
        load_average_at_start=load_at_start,
        machine=speed_report.machine(),
        devices={r["side"]: r["device"] for r in reports},
        codec_dtypes={r["side"]: r["codec_dtype"] for r in reports if "codes" in r},
        versions={r["side"]: r["versions"] for r in reports},
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        command=shlex.join(["python", "-m", "eval.speed", *sys.argv[1:]]),
        job=job,
        runs=[{k: v for k, v in r.items() if k != "codes"} for r in reports],
    )


def use_processors(count: int) -> None:
    """Let this process and those it starts run on the first `count` processors only.

    XLA makes as many threads as there are processors to use; it has no option for it.
    """
    if not sys.platform.startswith("linux"):
        raise ValueError(f"got {sys.platform}, expected Linux, to set processors")
    usable = sorted(os.sched_getaffinity(0))
    if not 1 <= count <= len(usable):
        raise ValueError(f"got --threads {count}, expected 1 to {len(usable)}")
    os.sched_setaffinity(0, usable[:count])


def main() -> None:
    parser = argparse.ArgumentParser("python -m eval.speed", None, __doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--model", help="checkpoint directory or hub id; default: random weights")
    add("--size", choices=released.SIZES, default="0.6B", help="of random weights")
    add("--variant", choices=configs.VARIANTS, default="custom_voice", help="of those")
    add("--dtype", choices=("float32", "bfloat16"), default="float32")
    add("--threads", type=int, default=2, help="processors to use; default: 2")
    add("--frames", type=int, default=48, help="of the long run; default: 48")
    add("--rounds", type=int, default=2, help="times that each side runs; default: 2")
    add("--against", choices=["official"], help="also measure the PyTorch package")
    python = os.environ.get("QWEN_TTS_PYTHON", sys.executable)
    add("--official_python", default=python, help="default: QWEN_TTS_PYTHON, or this")
    add("--out", type=pathlib.Path, help="folder for metrics.json and speed.png")
    args = parser.parse_args()
    try:
        if args.frames <= our_speed.FEW_FRAMES or args.rounds < 1:
            raise ValueError("expected --frames 3 or more and --rounds 1 or more")
        use_processors(args.threads)
        metrics = compare(args)
    except (OSError, RuntimeError, ValueError) as error:
        parser.error(str(error))
    print(speed_report.table(metrics))
    if args.out:
        speed_report.write(metrics, args.out)


if __name__ == "__main__":
    main()
