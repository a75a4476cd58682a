"""Speed of generation, streams and codec, beside what the memory allows and, with
`--against`, beside the official PyTorch package and faster-qwen3-tts on the same
checkpoint.  One command, on any device:

    python -m eval.benchmarks.speed --size 0.6B --threads 2 --against official --out DIR
    python -m eval.benchmarks.speed --concurrency 1,3,6,16,64 --experiments \\
        --weights int8
    python -m eval.benchmarks.speed --against official --official_dtype float32,bfloat16
    python -m eval.benchmarks.speed --against official,faster-qwen3-tts \\
        --dtype bfloat16  # GPU
    python -m eval.benchmarks.speed --variant base_25hz --packets --concurrency 1,3,6

Without --model the weights are random, at their real size: speed does not depend on
them.  All sides do the same work: one text, greedy in both heads, exactly --frames
frames, for none can end earlier (ours has no end token, the official one's row of the
codec head is set to zero; the frames are counted).  They run in turn, so that a drift
of the machine shows, each in a process of its own that may use the first --threads
processors only.  Time on a machine that does nothing else.  Linux only.

One utterance:
- generation: a run of many frames less a run of two, so that the prompt does not count.
- code predictor: ours in a loop of its own; official: a stopwatch in the same run.
- talker: ours without the predictor; official: the rest of the frame.  Ours are timed
  apart from the frame, so that their sum may miss it, by the row `less these two`.
- codec per frame: the streaming decoder, which keeps its state, one frame at a time and
  eight; the official package has none.  At 25 Hz per packet: of 8 codes, with one block
  of lookahead as streams have it, and with as many as make it exact.
- prefill: the short run less its two frames.
- compile: the first run less the same run later.
- codec: 10 s (--codec_seconds) through `Qwen3TTSTokenizer.decode` and `.encode`, best
  of two; at 25 Hz also its parts.
- peak memory: of a process that has loaded, made frames and decoded them once, with the
  pages of the weight file that it maps; on a GPU: of the device's memory, weights and
  all.  Of a stream: of a process that did nothing else, compilation included.
- first frame: from the start of a process, without and with programs that another such
  process has left in the persistent compilation cache (every program is kept).
- floor: bytes of the weights that one frame reads (the talker's stack and codec head
  once, the predictor's stack and projection 15 times, each of its heads once) over the
  rate of a float32 vector-matrix product.  Caches and embedding rows are left out.

Streams (--concurrency): so many sessions of one engine with as many slots, asked for at
once, read in turn by one thread; whole text, sampling on, seeds 0, 1, ...; programs are
compiled before.
- first byte: from the request to the first chunk in hand; median and maximum.
- first audible: to the chunk with the first 10 ms louder than -50 dBFS (RMS); the chunk
  counts, not the place in it.
- per frame-step: a frame of every stream, after all have had their first chunk.
- audio s per s: of all streams, from the request to the last chunk.
- RTF: of one stream, first chunk and prompt included.
faster-qwen3-tts has rows for packets of 1 frame and of 12, its default.

--packets: a row of the paper's table of latencies for each --concurrency, in packets of
320 ms: 4 codes at 12.5 Hz, 8 at 25 Hz, where 16 must be there before the first.
- LM: request to the codes of the first packet, and from packet to packet, of streams
  whose codec is a stand-in that makes no sound.
- codec: the streaming decoder alone, for all streams at once; up to the first sound,
  and per later packet.
- first packet, packet, RTF: with both in one program, as they run.

25Hz checkpoints: a frame is the talker alone, for there is no code predictor, and codes
come in groups of 8 only.  The official package does not load their codec without CAM++,
nor generate with them: its predictor is asked for no codes, and fails.  So its LM is
measured with a predictor that gives none and without a codec, and its codec apart:
`quantize_speech` ("codes alone"), `decode`, its DiT with 10 steps and its BigVGAN.  It
has no streaming decoder, so there are no packets to compare.

--weights: our side once more with these weights, and how far they lead from the float
ones: see `quantization_error.py`.

--experiments, of the paper's two the first packet after 1, 2, 4, 6 and 8 frames, at
25 Hz with lookahead of 0, 1, 2, 4 blocks and all (see `streams.first_packet`; one
stream) with its latency and quality.  The other, 12Hz against 25Hz: `latency`.
"""

import argparse
import dataclasses
import datetime
import json
import os
import pathlib
import shlex
import subprocess
import sys
import tempfile
import time

from eval.benchmarks import job as speed_job
from eval.benchmarks import report as speed_report
from eval.benchmarks import worker_jax
from qwen3tts_jax.checkpoints import random_weights
from qwen3tts_jax.config import released
from qwen3tts_jax.serving import engine

ROOT = pathlib.Path(__file__).resolve().parents[2]
CODEC_SECONDS = 10.0
OFFICIAL, FASTER = "official", "faster-qwen3-tts"
PEERS = (OFFICIAL, FASTER)
SCRIPTS = {
    OFFICIAL: ROOT / "eval" / "benchmarks" / "worker_official.py",
    FASTER: ROOT / "eval" / "benchmarks" / "worker_faster.py",
}
INSTALL = {
    OFFICIAL: "in an environment of its own `pip install torch transformers==4.57.3 "
    "accelerate einops librosa onnxruntime soundfile` and `pip install --no-deps "
    "qwen-tts==0.1.1 torchaudio sox`, and name its Python by --official_python or "
    "QWEN_TTS_PYTHON",
    FASTER: "on a machine with an NVIDIA GPU, for it needs CUDA, in an environment of "
    "its own `pip install faster-qwen3-tts`, and name its Python by --faster_python or "
    "FASTER_QWEN3_TTS_PYTHON",
}
PYTHONS = dict(official="QWEN_TTS_PYTHON", faster="FASTER_QWEN3_TTS_PYTHON")
DTYPES = ("float32", "bfloat16")
SIZES = (*released.SIZES, random_weights.TINY)
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


@dataclasses.dataclass(frozen=True)
class Side:
    """What is measured: a command that takes a job, and what is its own in the job."""

    command: list[str]
    own: dict = dataclasses.field(default_factory=dict)
    peer: str | None = None


def sides_of(args) -> dict[str, Side]:
    """Name -> side, ours first; each peer has been found to work."""
    ours = [sys.executable, "-m", "eval.benchmarks.worker_jax"]
    found = dict(ours=Side(ours))
    if args.weights:
        found[f"ours {args.weights}"] = Side(ours, dict(weights=args.weights))
    pythons = {OFFICIAL: args.official_python, FASTER: args.faster_python}
    for peer in args.against:
        command = [pythons[peer], str(SCRIPTS[peer])]
        check(peer, command)
        dtypes = args.official_dtype or [args.dtype]
        if peer == FASTER or len(dtypes) == 1:
            own = {} if peer == FASTER else dict(dtype=dtypes[0])
            found[peer] = Side(command, own, peer)
            continue
        for dtype in dtypes:
            found[f"{peer} {dtype}"] = Side(command, dict(dtype=dtype), peer)
    return found


def check(peer: str, command: list[str]) -> None:
    """Raises: ValueError that says what to install, if the peer's side cannot run."""
    try:
        run(command, dict(task="check", threads=1, device="cpu"))
    except (OSError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise ValueError(
            f"got --against {peer} with {command[0]}, where it does not run "
            f"({reason}); {INSTALL[peer]}"
        ) from error


class Reports(list):
    """What the processes report, in the order they ran."""

    def __init__(self, sides: dict[str, Side], job: dict):
        super().__init__()
        self.sides, self.job, self.failures = sides, job, []

    def add(self, side: str, task: str, n: int, more=None, **environment) -> None:
        """Run one task of one side."""
        print(f"{side}: {task} {n}", file=sys.stderr)
        chosen = self.sides[side]
        job = self.job | chosen.own | dict(task=task) | (more or {})
        report = run(chosen.command, job, **environment)
        if report["device"] == "gpu":  # ours goes first and finds it
            self.job["device"] = "cuda:0"
        report = derived(report, job["frame_rate"], job["codec_seconds"])
        self.append(report | dict(side=side, task=task, n=n))

    def attempt(self, side: str, task: str, n: int, more=None) -> None:
        """`add`, but its failure (of memory, say) is a warning: the rest stays."""
        try:
            self.add(side, task, n, more)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            self.failures.append(f"{side} {task} {n} failed: {reason}")


def measure_in_turn(sides: dict[str, Side], job: dict, args) -> Reports:
    """Reports of ours, official, ours, official, ..., then of starts, then of streams
    and whatever else is asked for."""
    reports = Reports(sides, job)
    own = [name for name, side in sides.items() if side.peer is None]
    for n in range(1, args.rounds + 1):
        for side in sides:
            reports.add(side, "measure", n, JAX_ENABLE_COMPILATION_CACHE="false")
    for side in own:
        with tempfile.TemporaryDirectory() as cache:
            for n in (1, 2):  # the second finds what the first has compiled
                keep = dict(KEEP_EVERY_PROGRAM, JAX_COMPILATION_CACHE_DIR=cache)
                reports.add(side, "start", n, **keep)
    for name, side in sides.items():
        if side.peer == OFFICIAL:
            reports.add(name, "start", 1)
    for side in own:
        for count in args.concurrency:
            reports.attempt(side, "stream", count, dict(concurrency=count))
        for count in args.concurrency if args.packets else ():
            reports.attempt(side, "packets", count, dict(concurrency=count))
        if sides[side].own.get("weights"):
            reports.attempt(side, "agreement", 1)
    if args.experiments:
        reports.attempt("ours", "experiments", 1)
    if args.profile:
        profile = dict(profile=str(args.profile.resolve()))
        reports.attempt("ours", "profile", 1, profile)
    return reports


def derived(report: dict, frame_rate: float, codec_seconds: float) -> dict:
    """The report with what follows from it."""
    if "first_frame_at" in report:
        seconds = report["first_frame_at"] - report["started"]
        return report | dict(seconds_first_frame=seconds)
    if "seconds_per_frame" not in report:
        return report
    frame = report["seconds_per_frame"]
    rtf = frame * frame_rate
    more = dict(rtf_generation=rtf)
    if "seconds_per_frame_predictor" in report:
        parts = [
            report[f"seconds_per_frame_{part}"] for part in ("predictor", "talker")
        ]
        more["seconds_per_frame_rest"] = frame - sum(parts)
    if "seconds_decode" in report:
        more["rtf_speech"] = rtf + report["seconds_decode"] / codec_seconds
    return report | more


def compare(args) -> dict:
    """Everything that metrics.json holds."""
    load_at_start = os.getloadavg()[0]
    sides = sides_of(args)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "checkpoint"
        chosen = (args.model, args.size, args.variant)
        job = speed_job.make_job(args, speed_job.checkpoint(*chosen, path))
        if FASTER in args.against and job["single_codebook"]:
            raise ValueError(
                f"got --against {FASTER} with a 25Hz checkpoint, expected a 12Hz one: "
                "that package knows no other"
            )
        reports = measure_in_turn(sides, job, args)
    del job["model"]  # the command names it
    warnings = speed_report.warnings(load_at_start, reports) + reports.failures
    return speed_report.collect(reports) | dict(
        warnings=warnings,
        load_average_at_start=load_at_start,
        machine=speed_report.machine(),
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        command=shlex.join(["python", "-m", "eval.benchmarks.speed", *sys.argv[1:]]),
        job=job,
        sides={name: side.own for name, side in sides.items()},
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


def gpu_visible() -> bool:
    """Whether this machine has an NVIDIA GPU."""
    return any(pathlib.Path("/dev").glob("nvidia[0-9]*"))


def default_threads() -> int:
    """2; beside a GPU, whose programs the processors only launch, all."""
    return len(os.sched_getaffinity(0)) if gpu_visible() else 2


def comma_list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def numbers(text: str) -> list[int]:
    return [int(part) for part in comma_list(text)]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options; see the module's docstring."""
    add = parser.add_argument
    add("--model", help="checkpoint directory or hub id; default: random weights")
    add("--size", choices=SIZES, default="0.6B", help="of random weights")
    variants = random_weights.VARIANTS
    add("--variant", choices=variants, default="custom_voice", help="of those")
    add("--dtype", choices=DTYPES, default="float32", help="of all sides")
    add("--weights", choices=("int8", "float8"), help="also measure ours with these")
    add("--threads", type=int, help="processors to use; default: 2, with a GPU all")
    add("--frames", type=int, default=48, help="of the long run; default: 48")
    add("--rounds", type=int, default=2, help="times that each side runs; default: 2")
    many = "streams at once, such as 1,3,6,16,64; default: 1"
    add("--concurrency", type=numbers, default=[1], help=many)
    default = "of each stream; default: 24, at 25 Hz 48"
    add("--stream_frames", type=int, help=default)
    packets = "frames of a stream's packets, the last for all later ones; default: "
    packets += ",".join(map(str, engine.SCHEDULE)) + ", at 25 Hz always 8"
    add("--schedule", type=numbers, help=packets)
    add("--packets", action="store_true", help="also the paper's table of latencies")
    add("--experiments", action="store_true", help="also first packets of many kinds")
    ten = f"of sound, for the codec; default: {CODEC_SECONDS:g}"
    add("--codec_seconds", type=float, default=CODEC_SECONDS, help=ten)
    peers = f"also measure these packages: {', '.join(PEERS)}"
    add("--against", action="extend", type=comma_list, default=[], help=peers)
    dtypes = "comma list, a side for each; default: --dtype"
    add("--official_dtype", type=comma_list, default=[], help=dtypes)
    for name, variable in PYTHONS.items():
        python = os.environ.get(variable, sys.executable)
        add(f"--{name}_python", default=python, help=f"default: {variable}, or this")
    add("--profile", type=pathlib.Path, help="folder for a jax.profiler trace")
    add("--out", type=pathlib.Path, help="folder for metrics.json and speed.png")


def check_arguments(args) -> None:
    """Raises: ValueError for what cannot be measured."""
    if args.frames <= worker_jax.FEW_FRAMES or args.rounds < 1:
        raise ValueError("expected --frames 3 or more and --rounds 1 or more")
    if min([1, *args.concurrency, *(args.schedule or [1])]) < 1 or args.schedule == []:
        raise ValueError("expected --concurrency and --schedule 1 or more")
    if args.codec_seconds <= 0 or (args.stream_frames or 1) < 1:
        raise ValueError("expected --codec_seconds and --stream_frames more than 0")
    known = dict(against=PEERS, official_dtype=DTYPES)
    for name, choices in known.items():
        for value in getattr(args, name):
            if value not in choices:
                raise ValueError(f"got --{name} {value}, expected {', '.join(choices)}")


def main() -> None:
    parser = argparse.ArgumentParser("python -m eval.benchmarks.speed", None, __doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add_arguments(parser)
    args = parser.parse_args()
    try:
        check_arguments(args)
        if args.threads is None:
            args.threads = default_threads()
        use_processors(args.threads)
        metrics = compare(args)
    except (OSError, RuntimeError, ValueError) as error:
        parser.error(str(error))
    print(speed_report.table(metrics))
    if args.out:
        speed_report.write(metrics, args.out)


if __name__ == "__main__":
    main()
