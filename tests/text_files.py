"""Files of a text tokenizer, and the ids that the official package gives."""

import json
import pathlib

GOLDEN = json.loads(
    (pathlib.Path(__file__).parent / "golden" / "text_ids.json").read_text("utf-8")
)
FILES = ("vocab.json", "merges.txt", "tokenizer_config.json")


def edit_config(directory, change):
    path = directory / "tokenizer_config.json"
    config = json.loads(path.read_text("utf-8"))
    change(config["added_tokens_decoder"])
    path.write_text(json.dumps(config), "utf-8")
