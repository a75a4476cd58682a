"""Run the official package on a checkpoint and write one small golden file.

    python tests/golden/dump_official.py DIR --seed 7 --out FILE.safetensors \\
        [--recording tests/recordings/NAME.flac] [--only PART ...]

DIR has the official layout: a TTS model with speech_tokenizer/ inside. Everything is
float32 on the CPU. `official.py` says what the environment needs, `inputs.py` makes the
inputs, and the file's metadata ("notes", JSON) names the cases and the margins.
"""

import argparse
import pathlib

import dump_codec
import dump_language
import dump_sampling
import golden_file
import inputs
import official
import torch

PARTS = {
    "generation": dump_language.dump_generation,
    "predictor": dump_language.dump_predictor,
    "training": dump_language.dump_training,
    "sampling": dump_sampling.dump,
    "encode": dump_codec.dump_encoding,
    "decode": dump_codec.dump_decoding,
    "speaker": dump_language.dump_speaker,
    "references": dump_language.dump_references,
}
BASE_ONLY = {"speaker", "references"}  # other models have no speaker encoder


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=pathlib.Path)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--recording", type=pathlib.Path)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    args = parser.parse_args()
    torch.set_num_threads(1)  # the sums of one thread, whatever the machine
    tts = official.load(args.directory)
    golden = golden_file.Golden()
    golden.note("made_with", official.versions() | {"seed": args.seed})
    golden.note("fingerprints", inputs.fingerprints(args.seed))
    for part in args.only:
        if part not in BASE_ONLY or tts.model.tts_model_type == "base":
            PARTS[part](golden, tts, args.seed)
    if args.recording:
        dump_codec.dump_recording(golden, tts, args.recording)
    golden.save(args.out)


if __name__ == "__main__":
    main()
