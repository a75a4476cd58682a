"""Fill the compilation cache, so that a server or `infer.py --stream` starts at once.

    python -m qwen3tts_jax.serving.warmup --model DIR_OR_HUB_ID --slots 1

Programs are kept in ~/.cache/qwen3tts_jax/xla, or where JAX_COMPILATION_CACHE_DIR says.
They are good for this model, device, dtype and version of jax.
"""

import argparse
import time

from qwen3tts_jax import model
from qwen3tts_jax.serving import engine


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        "python -m qwen3tts_jax.serving.warmup",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", required=True, help="checkpoint directory or hub id")
    add("--dtype", choices=("float32", "bfloat16"), help="default: float32 on CPU only")
    add("--weights", choices=("int8", "float8"), help="of one byte each")
    add("--slots", type=int, default=1, help="streams at once; default: 1")
    add("--positions", type=int, default=engine.POSITIONS, help="prompt and frames")
    add("--reference_seconds", type=float, default=12.0, help="of recordings to clone")
    args = parser.parse_args(argv)
    try:
        bundle = model.Qwen3TTSModel.from_pretrained(
            args.model, dtype=args.dtype, weights=args.weights
        )
        start = time.perf_counter()
        bundle.warmup(
            slots=args.slots,
            positions=args.positions,
            reference_seconds=args.reference_seconds,
        )
    except (OSError, ValueError) as error:
        parser.error(" ".join(str(error).split()))
    print(f"ready in {time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
    main()
