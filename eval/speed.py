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
- talker: ours without the predictor; official: the rest of the frame.
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
import importlib.util
import json
import os
import pathlib
import platform
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
import time

import flax
import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
from flax import struct

from qwen3tts_jax import config as configs
from qwen3tts_jax import generate, hf, model, placement, released, sampling

ROOT = pathlib.Path(__file__).resolve().parents[1]
REFERENCE = ROOT / "tests" / "recordings" / "allison_en.flac"  # for Base
TEXT = "The ship left the harbour at dawn, and nobody on the pier waved it goodbye."
FEW_FRAMES = 2  # the short run, whose time is taken off the long one's
FRAME_SECONDS = 0.08
CODEC_SECONDS = 10
READ_BYTES = 2**30  # much more than any cache holds
BUSY = 0.5  # processors at work elsewhere, from which on timings are not to be trusted
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
SIDES = ("ours", "official")

# ------------------------------------------------------- our side, in its own process


@struct.dataclass
class SilentPredictor:
    """Stands where the code predictor is, so that a frame costs the rest alone."""

    groups: int = struct.field(pytree_node=False)

    def generate(self, hidden, first, choose):
        return jnp.zeros((len(hidden), self.groups), jnp.int32)

    def embed(self, codes):
        return jnp.float32(0)


def timed(function, *args):
    """(seconds, result)."""
    start = time.perf_counter()
    result = jax.block_until_ready(function(*args))
    return time.perf_counter() - start, result


def load(job: dict) -> model.Qwen3TTSModel:
    """The checkpoint, with an end token that greedy choice never takes."""
    bundle = model.Qwen3TTSModel.from_pretrained(job["model"], dtype=job["dtype"])
    lm, eos = bundle.language_model, bundle.config.talker.codec_eos_id
    talker = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf.at[:, eos].set(0)
        if hf.leaf_path(path) == "codec_head.kernel"
        else leaf,
        lm.talker,
    )
    bundle.language_model = jax.block_until_ready(lm.replace(talker=talker))
    return bundle


def frame_maker(bundle: model.Qwen3TTSModel, job: dict):
    """(count, language model) -> codes [count, 16] of the job's request."""
    name = f"{model.METHODS[bundle.config.variant]}_utterances"
    [utterance] = getattr(bundle, name)(**job["request"])

    def make(count: int, lm: generate.LanguageModel) -> np.ndarray:
        # N tokens make at most N - 1 frames, as officially
        user = dict(job["options"], max_new_tokens=count + 1)
        options = sampling.Options.merge(user, bundle.generate_defaults)
        with placement.exact():
            [made] = generate.generate(
                lm, bundle.config, [utterance.prompt], options, seed=0, guard=False
            )
        if len(made.codes) != count:
            raise ValueError(f"got {len(made.codes)} frames, expected {count}")
        return made.codes

    return make


def time_frames(make, lm, frames: int) -> tuple[dict, np.ndarray]:
    """Seconds to compile, before the first frame and per frame; the codes."""
    first, _ = timed(make, frames, lm)
    few, _ = timed(make, FEW_FRAMES, lm)
    many, codes = timed(make, frames, lm)
    frame = (many - few) / (frames - FEW_FRAMES)
    seconds = dict(
        seconds_compile=first - many,
        seconds_prefill=few - FEW_FRAMES * frame,
        seconds_per_frame=frame,
    )
    return seconds, codes


@jax.jit
def predict_frames(lm: generate.LanguageModel, params: sampling.Sampling, frames):
    """Codebooks 1..15 of one frame after another, as in `generate.make_frame`.

    Returns the last embedding [1, D], on which each frame depends.
    """
    key = jax.random.key(0)

    def frame(n, x):
        def choose(scores, i):
            keys = jax.random.fold_in(jax.random.fold_in(key, n), i)[None]
            return sampling.choose(scores, params.predictor, keys)

        codes = lm.predictor.generate(x, x, choose)  # [1, 15]
        return lm.talker.embed_codec(codes[:, -1])

    first = lm.talker.embed_codec(jnp.zeros(1, jnp.int32))
    return jax.lax.fori_loop(0, frames, frame, first)


def time_predictor(lm: generate.LanguageModel, options: dict, frames: int) -> float:
    """Seconds per frame that the code predictor takes alone."""
    params = sampling.Options.merge(options, {}).sampling()
    with placement.exact():
        predict_frames(lm, params, 1).block_until_ready()
        return timed(predict_frames, lm, params, frames)[0] / frames


def time_codec(codec, job: dict) -> dict:
    """Seconds of decoding and encoding, best of two after one unmeasured call each."""
    rng = np.random.default_rng(0)
    codes = rng.integers(
        0, job["codebook"], (job["codec_frames"], codec.config.quantizers)
    )
    wave = rng.normal(0, 0.1, job["wave_samples"]).astype(np.float32)
    calls = dict(
        seconds_decode_10s=lambda: codec.decode([codes]),
        seconds_encode_10s=lambda: codec.encode(wave, sr=job["wave_rate"]).audio_codes,
    )
    for call in calls.values():
        call()
    return {k: min(timed(call)[0] for _ in range(2)) for k, call in calls.items()}


def parameter_bytes(module) -> int:
    """Bytes of a module's parameters, or of its shapes."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(module))


def bytes_per_frame(lm: generate.LanguageModel) -> dict[str, int]:
    """Bytes of weights that talker and predictor read for one frame."""
    talker, predictor = lm.talker, lm.predictor
    passes = predictor.config.code_groups - 1  # the first reads once for two positions
    again = parameter_bytes((predictor.transformer, predictor.projection))
    return dict(
        talker=parameter_bytes((talker.transformer, talker.codec_head)),
        predictor=passes * again + parameter_bytes(predictor.heads),
    )


def read_rate() -> float:
    """Bytes per second at which products read a large matrix; best of five.

    Not a plain sum: on CPU XLA runs that on one thread, and it is slower.
    """
    matrix = jnp.ones((READ_BYTES // 4 // 4096, 4096), jnp.float32)
    vector = jnp.ones(len(matrix))
    product = jax.jit(lambda x, y: x @ y)
    product(vector, matrix).block_until_ready()
    return READ_BYTES / min(timed(product, vector, matrix)[0] for _ in range(5))


def measure(job: dict) -> dict:
    """Everything but the start; memory before whatever a speaker would not do."""
    load_seconds, bundle = timed(load, job)
    lm, frames, codec = bundle.language_model, job["frames"], bundle.speech_tokenizer
    make = frame_maker(bundle, job)
    seconds, codes = time_frames(make, lm, frames)
    codec.decode([codes])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    silent = lm.replace(predictor=SilentPredictor(codes.shape[1] - 1))
    talker, _ = time_frames(make, silent, frames)
    return dict(
        **seconds,
        seconds_load=load_seconds,
        seconds_per_frame_predictor=time_predictor(lm, job["options"], frames),
        seconds_per_frame_talker=talker["seconds_per_frame"],
        **time_codec(codec, job),
        peak_memory_gib=peak / 2**20,  # Linux counts in KiB
        codec_dtype=str(codec.decoder.pre_conv.kernel[...].dtype),
        codes=codes.tolist(),
        bytes_per_frame=bytes_per_frame(lm),
        read_bytes_per_second=read_rate(),
    )


def start(job: dict) -> dict:
    """When the first frame was there, in seconds since 1970."""
    bundle = load(job)
    frame_maker(bundle, job)(1, bundle.language_model)
    return dict(first_frame_at=time.time())


def work(job: dict) -> dict:
    """One task in this process: what the line of JSON says."""
    report = dict(measure=measure, start=start)[job["task"]](job)
    versions = dict(python=platform.python_version(), jax=jax.__version__)
    versions |= dict(jaxlib=jaxlib.__version__, flax=flax.__version__)
    return report | dict(device=jax.devices()[0].platform, versions=versions)


# ---------------------------------------------------- the processes, one after another


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
    found = dict(ours=[sys.executable, "-m", "eval.speed", "--worker"])
    if args.against:
        found["official"] = [args.official_python, str(OFFICIAL)]
        try:
            run(found["official"], dict(task="check", threads=None))
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
        base=dict(ref_audio=str(REFERENCE), x_vector_only_mode=True),
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
        if report.get("device", "cpu") != "cpu":  # ours goes first and finds it
            job["device"] = "cuda:0"
        reports.append(derived(report) | dict(side=side, task=task, n=n))

    for n in range(1, rounds + 1):
        for side in sides:
            add(side, "measure", n, JAX_ENABLE_COMPILATION_CACHE="false")
    with tempfile.TemporaryDirectory() as cache:
        for n in (1, 2):  # the second finds what the first has compiled
            add("ours", "start", n, JAX_COMPILATION_CACHE_DIR=cache, **KEEP_EVERY_PROGRAM)
    if "official" in sides:
        add("official", "start", 1)
    return reports


def derived(report: dict) -> dict:
    """The report with what follows from it."""
    if "first_frame_at" in report:
        seconds = report["first_frame_at"] - report["started"]
        return report | dict(seconds_first_frame=seconds)
    rtf = report["seconds_per_frame"] / FRAME_SECONDS
    return report | dict(
        rtf_generation=rtf,
        rtf_speech=rtf + report["seconds_decode_10s"] / CODEC_SECONDS,
    )


# ------------------------------------------------------------------------ the report

ROWS = dict(
    seconds_per_frame="s per 80 ms frame",
    seconds_per_frame_predictor="  code predictor",
    seconds_per_frame_talker="  talker",
    rtf_generation="real-time factor, codes",
    rtf_speech="  and their decoding",
    seconds_decode_10s="codec: decode 10 s, s",
    seconds_encode_10s="codec: encode 10 s, s",
    seconds_prefill="prefill, s",
    seconds_load="load, s",
    seconds_compile="compile, s",
    seconds_first_frame="process to first frame, s",
    seconds_first_frame_cached="  with cached programs",
    peak_memory_gib="peak memory, GiB",
)


def summarise(reports: list[dict]) -> dict:
    """Row -> side -> its values in the order they were measured."""
    rows = {key: {} for key in ROWS}
    for report in reports:
        again = report["task"] == "start" and report["n"] > 1
        for key in ROWS.keys() & report.keys():
            row = rows[f"{key}_cached" if again else key]
            row.setdefault(report["side"], []).append(report[key])
    return rows


def floor(reports: list[dict]) -> dict:
    """The least time a frame can take: bytes, rate (the best seen) and seconds."""
    ours = [r for r in reports if "bytes_per_frame" in r]
    size = ours[0]["bytes_per_frame"]
    rate = max(r["read_bytes_per_second"] for r in ours)
    seconds = sum(size.values()) / rate
    return dict(bytes=size, bytes_per_second=rate, seconds_per_frame=seconds)


def agreeing_frames(reports: list[dict]) -> int | None:
    """Frames from the start on in which both sides chose the same codes."""
    codes = {r["side"]: np.asarray(r["codes"]) for r in reports if "codes" in r}
    if "official" not in codes:
        return None
    same = (codes["ours"] == codes["official"]).all(axis=1)
    return len(same) if same.all() else int(same.argmin())


def warnings(load_at_start: float, reports: list[dict]) -> list[str]:
    """What was at work besides; the load average of later runs is our own work's."""
    found = []
    if load_at_start > BUSY:
        found.append(f"machine not idle: load average {load_at_start:.2f} at the start")
    return found + [
        f"machine not idle: {r['others']:.1f} processors busy elsewhere during "
        f"{r['side']} {r['task']} {r['n']}"
        for r in reports
        if r["others"] > BUSY
    ]


def machine() -> dict:
    """Processor, cores and memory."""
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    names = [l.split(": ")[1] for l in lines if l.startswith("model name")]
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return dict(
        processor=names[0] if names else platform.machine(),
        cores=os.cpu_count(),
        memory_gib=round(memory, 1),
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
        rows=summarise(reports),
        floor=floor(reports),
        agreeing_frames=agreeing_frames(reports),
        warnings=warnings(load_at_start, reports),
        load_average_at_start=load_at_start,
        machine=machine() | dict(device=reports[0]["device"]),
        codec_dtype={r["side"]: r["codec_dtype"] for r in reports if "codes" in r},
        versions={r["side"]: r["versions"] for r in reports},
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        command=shlex.join(["python", "-m", "eval.speed", *sys.argv[1:]]),
        job=job,
        runs=[{k: v for k, v in r.items() if k != "codes"} for r in reports],
    )


def table(metrics: dict) -> str:
    """The rows for people: every value, and the ratio of the medians."""
    lines = [f"{'':28}{'ours':22}{'official':22}official / ours"]
    for key, row in metrics["rows"].items():
        cells = [" ".join(f"{v:.4g}" for v in row.get(side, ())) for side in SIDES]
        medians = [statistics.median(row[side]) for side in SIDES if side in row]
        ratio = f"{medians[1] / medians[0]:.2f}" if len(medians) == 2 else ""
        lines.append(f"{ROWS[key]:28}{cells[0]:22}{cells[1]:22}{ratio}".rstrip())
    return "\n".join([*lines, *notes(metrics)])


def notes(metrics: dict) -> list[str]:
    """The lines below the table: floor, agreement, warnings, where and with what."""
    least, host, job = metrics["floor"], metrics["machine"], metrics["job"]
    times = [
        f"{side} {statistics.median(v) / least['seconds_per_frame']:.2f} times that"
        for side, v in metrics["rows"]["seconds_per_frame"].items()
    ]
    lines = [
        f"floor: {sum(least['bytes'].values()) / 1e9:.3g} GB per frame at "
        f"{least['bytes_per_second'] / 1e9:.3g} GB/s = "
        f"{least['seconds_per_frame']:.4g} s; {', '.join(times)}"
    ]
    if (frames := metrics["agreeing_frames"]) is not None:
        lines.append(f"same codes in the first {frames} of {job['frames']} frames")
    lines += [f"WARNING: {text}" for text in metrics["warnings"]]
    for side, versions in metrics["versions"].items():
        with_ = ", ".join(f"{name} {version}" for name, version in versions.items())
        lines.append(f"{side}: {with_}; codec {metrics['codec_dtype'][side]}")
    where = f"{host['processor']}, {host['cores']} cores, {host['memory_gib']} GiB"
    lines.append(f"{where}, {host['device']}, {job['threads']} threads, {job['dtype']}")
    return [*lines, f"{metrics['date']}  {metrics['command']}"]


def plot(metrics: dict, path: pathlib.Path) -> None:
    """Bars of a frame's parts beside the floor, and of the codec; medians."""
    from matplotlib import figure  # here: the timed processes import this file too

    picture = figure.Figure(figsize=(9, 3), layout="constrained")
    axes = picture.subplots(1, 2)
    parts = (
        ("seconds_per_frame_predictor", "seconds_per_frame_talker"),
        ("seconds_decode_10s", "seconds_encode_10s"),
    )
    for axis, keys in zip(axes, parts):
        start = dict.fromkeys(SIDES, 0.0)
        for key in keys:
            row = {s: statistics.median(v) for s, v in metrics["rows"][key].items()}
            left = [start[side] for side in row]
            axis.barh(list(row), list(row.values()), left=left, label=ROWS[key].strip())
            start |= {side: start[side] + value for side, value in row.items()}
    axes[0].axvline(metrics["floor"]["seconds_per_frame"], color="k", label="floor")
    axes[0].set_xlabel("seconds per 80 ms frame")
    axes[1].set_xlabel("seconds")
    for axis in axes:
        axis.legend(fontsize="small")
    picture.savefig(path)


def write(metrics: dict, out: pathlib.Path) -> None:
    """metrics.json and, where matplotlib is installed, speed.png."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")
    if importlib.util.find_spec("matplotlib"):
        plot(metrics, out / "speed.png")
    else:
        print("no picture: matplotlib is not installed (extra eval)", file=sys.stderr)


def use_processors(count: int) -> None:
    """Let this process and those it starts run on the first `count` processors only.

    XLA makes as many threads as there are processors to use; it has no option for it.
    """
    if not sys.platform.startswith("linux"):
        raise ValueError(f"got {sys.platform}, expected Linux, where threads can be set")
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
    add("--worker", type=json.loads, metavar="JOB", help="what this program starts")
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(work(args.worker)))
        return
    try:
        if args.frames <= FEW_FRAMES or args.rounds < 1:
            raise ValueError("expected --frames 3 or more and --rounds 1 or more")
        use_processors(args.threads)
        metrics = compare(args)
    except (OSError, RuntimeError, ValueError) as error:
        parser.error(str(error))
    print(table(metrics))
    if args.out:
        write(metrics, args.out)


if __name__ == "__main__":
    main()
