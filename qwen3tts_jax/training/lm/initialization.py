"""Where training starts: an official TTS checkpoint, or a Qwen3 text model's backbone.

The talker has the layers of the Qwen3 text model of its size, so that a text checkpoint
fills them; source: config.json of Qwen3-0.6B and Qwen3-1.7B, arXiv 2505.09388.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx, struct
from jax.sharding import Mesh, NamedSharding

from qwen3tts_jax import model as models
from qwen3tts_jax import sharding
from qwen3tts_jax.checkpoints import hub, key_tables, weights
from qwen3tts_jax.config import section as sections
from qwen3tts_jax.config import tts
from qwen3tts_jax.nn import layers, transformer, tree
from qwen3tts_jax.training.lm import params

QWEN3 = "Qwen3ForCausalLM"


def from_official(
    directory: Path, config: tts.Qwen3TTSConfig, mesh: Mesh | None = None
) -> params.Parts:
    """The weights of an official TTS checkpoint, float32, each where it belongs.

    Raises: FileNotFoundError, ValueError as `weights.load`.
    """
    parts = params.abstract(config)
    rules = {name: pair[1] for name, pair in models.model_parts(config).items()}
    shapes = dict(talker=parts.talker, code_predictor=parts.predictor)
    if parts.speaker_encoder is not None:
        shapes["speaker_encoder"] = parts.speaker_encoder
    places = None
    if mesh is not None:
        cut = params.shardings(parts, mesh)
        places = dict(
            talker=cut.talker,
            code_predictor=cut.predictor,
            speaker_encoder=cut.speaker_encoder,
        )
    found = weights.load(
        directory,
        {name: (shape, rules[name]) for name, shape in shapes.items()},
        dtype=jnp.float32,
        shardings=places,
    )
    return params.Parts(
        talker=found["talker"],
        predictor=found["code_predictor"],
        speaker_encoder=found.get("speaker_encoder"),
    )


# ------------------------------------------------------------- a text backbone


@struct.dataclass
class TextModel:
    """A Qwen3 text model; `text_head` is None where it is the embedding."""

    transformer: transformer.Transformer
    text_embedding: layers.Embed
    text_head: layers.Linear | None


def from_qwen3_text(
    parts: params.Parts, directory: Path
) -> tuple[params.Parts, list[str]]:
    """The talker's layers, and its text embedding where the widths agree, taken from a
    Qwen3 text checkpoint.

    Args:
        parts: whose talker is filled; arrays.  What is taken goes where they are.
    Returns: (parts, what was taken and what was not, for people).
    Raises: FileNotFoundError; ValueError for another architecture or other widths.
    """
    theirs, vocabulary = _text_config(directory)
    talker = parts.talker
    _check_widths(directory, theirs, talker.config.transformer)
    text = _load_text(directory, theirs, vocabulary, _mesh(parts))
    notes = [f"took {theirs.layers} layers and the last norm from {directory}"]
    for name in ("rope_theta", "norm_eps"):
        values = [getattr(c, name) for c in (theirs, talker.config.transformer)]
        if values[0] != values[1]:
            notes.append(f"their {name} is {values[0]:g}: kept ours, {values[1]:g}")
    values = _paths(text.transformer, "transformer")
    if talker.config.text_dim == theirs.dim:
        rows = min(vocabulary, talker.config.text_vocab_size)
        table = talker.text_embedding.embedding[...]
        table = table.at[:rows].set(text.text_embedding.embedding[...][:rows])
        values["text_embedding.embedding"] = table
        notes.append(f"took {rows} rows of the text embedding")
    else:
        notes.append(
            f"kept the random text embedding: theirs is {theirs.dim} wide, ours "
            f"{talker.config.text_dim}"
        )
    return parts.replace(talker=tree.with_leaves(talker, values)), notes


def _text_config(directory: Path) -> tuple[tts.TransformerConfig, int]:
    """(its layers, its vocabulary)."""
    section = sections.Section(hub.read_json(directory / "config.json"), "config.json")
    section.need("architectures", list)
    section.only("architectures", [QWEN3])
    section.only("hidden_act", "silu")
    section.only("rope_scaling", None)
    config = tts.TransformerConfig.read(
        section, norm_eps=section.need("rms_norm_eps", float), qk_norm=True
    )
    vocabulary = section.need("vocab_size", int)
    if section.problems:
        raise ValueError(
            f"{directory} is no Qwen3 text checkpoint: {'; '.join(section.problems)}"
        )
    return config, vocabulary


def _paths(module, name: str) -> dict:
    flat, _ = jax.tree_util.tree_flatten_with_path(module)
    return {f"{name}.{tree.leaf_path(path)}": leaf for path, leaf in flat}


def _check_widths(directory: Path, theirs, ours) -> None:
    names = ("dim", "ffn", "layers", "heads", "kv_heads", "head_dim")
    wrong = [
        f"{name}: got {getattr(theirs, name)}, expected {getattr(ours, name)}"
        for name in names
        if getattr(theirs, name) != getattr(ours, name)
    ]
    if wrong:
        raise ValueError(
            f"the layers of {directory} do not fit the talker ({'; '.join(wrong)}); "
            "take the Qwen3 text model of the same size"
        )


def _mesh(parts: params.Parts) -> Mesh | None:
    place = parts.talker.codec_head.kernel[...].sharding
    return place.mesh if isinstance(place, NamedSharding) else None


def _load_text(
    directory: Path, config, vocabulary: int, mesh: Mesh | None
) -> TextModel:
    has_head = "lm_head.weight" in weights.names(directory)

    def build() -> TextModel:
        rngs = nnx.Rngs(0)
        return TextModel(
            transformer.Transformer(config, rngs=rngs, stacked=True),
            layers.Embed(vocabulary, config.dim, rngs=rngs),
            layers.Linear(config.dim, vocabulary, rngs=rngs) if has_head else None,
        )

    shape = jax.eval_shape(build)
    return weights.load(
        directory,
        dict(text=(shape, key_tables.qwen3_text_rules(config))),
        dtype=jnp.float32,
        shardings=None if mesh is None else dict(text=sharding.named(shape, mesh)),
    )["text"]
