"""Trained parts -> a checkpoint in the official layout, which infer.py and the official
package load.

Fine-tuned voices become speakers of a CustomVoice checkpoint: each takes a row of the
codec embedding, from 3000 on as in the official fine-tuning script (which knows one
speaker), and the speaker encoder stays behind, as in the released CustomVoice weights.
Or a Base checkpoint keeps its speaker encoder and names some voices beside it.
"""

import copy
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from qwen3tts_jax import model as models
from qwen3tts_jax.checkpoints import hub, weights
from qwen3tts_jax.config import released, tts
from qwen3tts_jax.generation import voice_clone
from qwen3tts_jax.nn import tree
from qwen3tts_jax.training.lm import params

DEFAULTS = {  # where the source has none
    "generation_config.json": released.GENERATION_CONFIG,
    "preprocessor_config.json": released.PREPROCESSOR_CONFIG,
}
# Of the codec embedding, for new speakers: from 3000 of 3072 on, the official script's
# choice.
LAST_ROWS = 72
NAME = r"\w[\w.-]*"


def export(
    out: Path,
    parts: params.Parts,
    hf_config: dict,
    source: Path,
    *,
    speakers: Mapping[str, np.ndarray] | None = None,
    voices: voice_clone.Voices | None = None,
    dtype=jnp.bfloat16,
) -> None:
    """Write a checkpoint; the directory appears whole or not at all.

    Args:
        out: must not exist, or be empty.
        hf_config: config.json of the model that was trained.
        source: checkpoint directory whose text tokenizer and codec are used.
        speakers: name -> float [D]; the result is a CustomVoice checkpoint.
        voices: named voices of a Base checkpoint; those of the source are left out,
            as the speaker encoder may have changed.
        dtype: of the weights in the file; None keeps float32.
    Raises: FileExistsError; FileNotFoundError for a source without a codec; ValueError
        for names that are taken or too many, and for vectors of another width.
    """
    codec = models.SPEECH_TOKENIZER
    if not (source / codec).is_dir():
        raise FileNotFoundError(
            f"{source / codec} is missing; give a whole TTS checkpoint as the source"
        )
    if speakers:
        hf_config = with_speakers(hf_config, list(speakers))
        rows = hf_config["talker_config"]["spk_id"]
        parts = write_rows(parts, {rows[_name(n)]: v for n, v in speakers.items()})
    config = tts.Qwen3TTSConfig.from_hf(hf_config)
    rules = {name: pair[1] for name, pair in models.model_parts(config).items()}
    modules = dict(
        talker=parts.talker,
        code_predictor=parts.predictor,
        speaker_encoder=parts.speaker_encoder,
    )
    with hub.new_directory(Path(out)) as directory:
        weights.save(directory, {k: (modules[k], rules[k]) for k in rules}, dtype=dtype)
        hub.write_json(directory / "config.json", hf_config)
        hub.copy_side_files(source, directory)
        if voices:
            voice_clone.write_voices(directory, voices)
        for name, values in DEFAULTS.items():
            if not (directory / name).exists():
                hub.write_json(directory / name, values)
        # a copy: what is linked changes with its source
        shutil.copytree(source / codec, directory / codec)


def with_speakers(hf_config: dict, names: list[str]) -> dict:
    """config.json of a CustomVoice checkpoint with more speakers.

    Raises: ValueError for a name that cannot be one or is taken, or if no row is free.
    """
    made = copy.deepcopy(hf_config)
    talker = made["talker_config"]
    known, names = talker["spk_id"], [_name(name) for name in names]
    bad = [n for n in names if not re.fullmatch(NAME, n) or n in known]
    bad += [n for n in names if names.count(n) > 1]
    if bad:
        raise ValueError(
            f"got speakers {', '.join(sorted(set(bad)))}, expected names of letters, "
            "digits, _, . and -, each once and none of "
            f"{', '.join(sorted(known)) or 'the checkpoint'}; rename them in the corpus"
        )
    taken = set(known.values()) | set(talker["codec_language_id"].values())
    first = talker["vocab_size"] - LAST_ROWS
    free = [i for i in range(first, talker["vocab_size"]) if i not in taken]
    if len(names) > len(free):
        raise ValueError(
            f"got {len(names)} speakers, expected at most {len(free)}: the codec "
            f"embedding has no more free rows from {first} on; leave some out"
        )
    talker["spk_id"] = known | dict(zip(names, free))
    talker["spk_is_dialect"] = talker["spk_is_dialect"] | dict.fromkeys(names, False)
    made["tts_model_type"] = "custom_voice"
    made.pop("speaker_encoder_config", None)
    return made


def write_rows(parts: params.Parts, rows: Mapping[int, np.ndarray]) -> params.Parts:
    """The parts with some rows of the codec embedding replaced, row -> float [D].

    Raises: ValueError for a vector of another width, or with what is no number.
    """
    table = parts.talker.codec_embedding.embedding[...]
    vectors = {row: np.asarray(value) for row, value in rows.items()}
    for value in vectors.values():
        if value.shape != table.shape[1:] or not np.isfinite(value).all():
            raise ValueError(
                f"got a speaker vector of shape {value.shape}, expected "
                f"{table.shape[1:]} and finite numbers; make it with the speaker "
                "encoder of this model"
            )
    table = table.at[np.asarray(list(vectors))].set(np.stack(list(vectors.values())))
    talker = tree.with_leaves(parts.talker, {"codec_embedding.embedding": table})
    return parts.replace(talker=talker)


def _name(name: str) -> str:
    """Lower case, as speakers are looked up; what a command line would cut is _."""
    return re.sub(r"[/\s]+", "_", name.lower())
