"""Waves of cloned speech, cut from what was decoded with the reference before it.

    python tests/golden/dump_clone.py DIR --seed 7 --out FILE.safetensors

DIR: see dump_official.py; only a Base checkpoint clones.
"""

import argparse
import pathlib

import dump_codec
import dump_language
import golden_file
import inputs
import official
import torch

CASES = ("x_vector", "icl_text_longer", "icl_codes_longer", "batch")
MAX_NEW_TOKENS = 9  # the official code makes one frame less


def dump(golden, tts, seed: int) -> None:
    for name in CASES:
        case = inputs.CASES["base"][name]
        waves, _ = tts.generate_voice_clone(
            list(case.texts),
            list(case.languages),
            voice_clone_prompt=dump_language.clone_prompt(tts, case, seed),
            non_streaming_mode=case.non_streaming,
            do_sample=False,
            subtalker_dosample=False,
            max_new_tokens=MAX_NEW_TOKENS,
        )
        golden.note(f"clone/{name}/samples", [len(wave) for wave in waves])
        for row, wave in enumerate(waves):
            # the official cut is one sample early for some lengths
            whole = len(wave) // inputs.SAMPLES_PER_FRAME * inputs.SAMPLES_PER_FRAME
            dump_codec.put_wave(golden, f"clone/{name}/{row}", wave[-whole:])


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=pathlib.Path)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    golden = golden_file.Golden()
    dump(golden, official.load(args.directory), args.seed)
    golden.save(args.out)


if __name__ == "__main__":
    main()
