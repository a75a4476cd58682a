"""Write text_ids.json: the ids that the plain official tokenizer gives `inputs.TEXTS`.

    python tests/golden/dump_text_ids.py DIR --out tests/golden/text_ids.json

DIR holds vocab.json, merges.txt and tokenizer_config.json of a Qwen3-TTS checkpoint.
Needs transformers 4.57.3. Plain: without the Mistral word pattern that the official
package swaps in for local directories (see qwen3tts_jax/text/tokenizer.py).
"""

import argparse
import hashlib
import json
import pathlib

import inputs
import transformers


def entry(tokenizer, text: str) -> dict:
    wrapped = f"<|im_start|>assistant\n{text}<|im_end|>\n<|im_start|>assistant\n"
    ids, assistant = tokenizer([text, wrapped])["input_ids"]
    return {"text": text, "ids": ids, "assistant": assistant}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    args = parser.parse_args()
    tokenizer = transformers.Qwen2TokenizerFast.from_pretrained(args.directory)
    long = tokenizer(inputs.LONG_PIECE * inputs.LONG_TIMES)["input_ids"]
    golden = {
        "texts": [entry(tokenizer, text) for text in inputs.TEXTS],
        "instructs": [
            {
                "text": text,
                "ids": tokenizer(f"<|im_start|>user\n{text}<|im_end|>\n").input_ids,
            }
            for text in (inputs.CALM, inputs.DEEP)
        ],
        "long": {
            "piece": inputs.LONG_PIECE,
            "times": inputs.LONG_TIMES,
            "count": len(long),
            "sha256": hashlib.sha256(json.dumps(long).encode()).hexdigest(),
        },
    }
    lines = json.dumps(golden, ensure_ascii=True).replace('{"text"', '\n{"text"')
    args.out.write_text(lines + "\n", "utf-8")


if __name__ == "__main__":
    main()
