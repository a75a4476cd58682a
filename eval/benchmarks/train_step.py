"""Time and MFU of the training step, predictor on all frames and on a part of them.

    python -m eval.benchmarks.train_step --size 0.6B,1.7B --fraction 1,0.0625 --rows 2
    python -m eval.benchmarks.train_step --size tiny --rows 2 --steps 3     on a CPU

The real step of configs/pretrain.py on one device or all, on made-up utterances of 10 s
packed into full rows: no corpus is needed.  Prints a table and writes --out as JSON.
"""

import argparse
import json
import pathlib
import time

import jax
import numpy as np

from configs import build, pretrain
from data.loading import packed_rows
from qwen3tts_jax import sharding
from qwen3tts_jax.config import tts
from qwen3tts_jax.training.lm import params, train_step

FRAMES, TEXT = 125, 40  # of an utterance of 10 s
ROLE = [151644, 77091, 198]  # <|im_start|> assistant \n
WARM = 2  # steps that are not timed


def rows(model: tts.Qwen3TTSConfig, length: int, count: int) -> dict:
    """Rows filled with random utterances, half of them streaming, each with a mel."""
    rng = np.random.default_rng(0)
    shape = packed_rows.Shape(
        length, length // build.USUAL_POSITIONS + 8, mel_frames=build.MEL_FRAMES
    )
    made = []
    for _ in range(count):
        row, used = [], 0
        while True:
            one = packed_rows.example(
                model,
                rng.integers(0, 2048, (FRAMES, 16)).astype(np.uint16),
                role=ROLE,
                text=rng.integers(0, 150_000, TEXT).tolist(),
                language="english",
                voice=rng.standard_normal((build.MEL_FRAMES, 128)).astype(np.float16),
                non_streaming=len(row) % 2 == 0,
            )
            used += len(one)
            if used > length or len(row) == shape.voices:
                break
            row.append(one)
        made.append(row)
    return packed_rows.pack(model, made, shape)


def measure(size: str, fraction: float, args) -> dict:
    """Seconds a step, positions a second and MFU of one configuration."""
    config = pretrain.get_config(f"stage=s1,size={size}")
    config.loss.predictor_fraction = fraction
    config.rows = args.rows * jax.device_count()
    config.compute.remat = args.remat or config.compute.remat
    config.length = args.length or config.length
    mesh = sharding.make_mesh(**build.mesh_shape(config, jax.device_count()))
    recipe = build.recipe(config, mesh)
    parts = params.init(recipe.config, jax.random.key(0), mesh)
    init = jax.jit(recipe.init, out_shardings=recipe.shardings(), donate_argnums=0)
    state = init(train_step.flatten(parts), jax.random.key(1))
    batch = rows(recipe.config, config.length, config.rows)
    batch = jax.device_put(batch, recipe.batch_shardings(batch))
    step, meter = recipe.compiled(), build.meter(recipe)
    times = []
    for _ in range(WARM + args.steps):
        began = time.perf_counter()
        state, metrics = step(state, batch)
        jax.block_until_ready(metrics)
        times.append(time.perf_counter() - began)
    assert np.isfinite(float(metrics["loss"]))
    seconds = float(np.median(times[WARM:]))
    work = meter.flops({name: np.asarray(x) for name, x in metrics.items()})
    return dict(
        size=size,
        fraction=fraction,
        seconds=seconds,
        positions_per_second=float(metrics["positions"]) / seconds,
        tflops=work / 1e12,
        mfu=work / seconds / meter.peak,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", default="0.6B,1.7B")
    parser.add_argument("--fraction", default="1,0.0625")
    parser.add_argument("--rows", type=int, default=1, help="of each device")
    parser.add_argument("--length", type=int, help="positions; default: the stage's")
    parser.add_argument("--steps", type=int, default=10, help="that are timed")
    parser.add_argument("--remat", help="none, dots, attention or full")
    parser.add_argument("--out", type=pathlib.Path)
    args = parser.parse_args()
    device = jax.devices()[0]
    print(f"{jax.device_count()} x {device.device_kind}, rows a device: {args.rows}")
    print("size  fraction  s/step  positions/s  TFLOP/step  MFU    speed-up")
    found = []
    for size in args.size.split(","):
        for fraction in map(float, args.fraction.split(",")):
            one = measure(size, fraction, args)
            first = next((f for f in found if f["size"] == size), one)
            one["speedup"] = first["seconds"] / one["seconds"]
            found.append(one)
            print(
                f"{size:5} {fraction:8.4f} {one['seconds']:7.3f} "
                f"{one['positions_per_second']:12,.0f} {one['tflops']:11.3f} "
                f"{one['mfu']:6.1%} {one['speedup']:8.2f}",
                flush=True,
            )
    if args.out:
        args.out.write_text(json.dumps(dict(device=device.device_kind, runs=found)))


if __name__ == "__main__":
    main()
