"""The small family speaks and learns: its ids and vocabularies, at narrow widths."""

import dataclasses
import pathlib

import examples
import jax
import numpy as np
import pytest
import text_files

from data.loading import packed_rows
from data.small_family import vocabulary
from qwen3tts_jax.checkpoints import random_weights, weights
from qwen3tts_jax.config import small, tiny, tts
from qwen3tts_jax.generation import generate, prompt
from qwen3tts_jax.models import code_predictor, talker
from qwen3tts_jax.text import tokenizer as text_tokenizer

VOCABULARY = 300  # ids: 256 bytes, 6 added tokens, "assistant", a few merges
X_VECTOR = np.random.default_rng(0).standard_normal(64, np.float32)


@pytest.fixture(scope="module")
def text_dir(tmp_path_factory) -> pathlib.Path:
    """A reduced vocabulary, as data/small_family makes it."""
    out = tmp_path_factory.mktemp("vocabulary") / "v"
    said = [entry["text"] for entry in text_files.GOLDEN["texts"]]
    vocabulary.write(out, {"many": said}, size=VOCABULARY)
    return out


def narrow(text_dir) -> tts.Qwen3TTSConfig:
    """The ids and vocabularies of the small talker, with the widths of a tiny one."""
    values = random_weights.tts_config("small", "base", text_dir)
    talking = values["talker_config"]
    talking |= tiny.TALKER | dict(text_hidden_size=32, num_hidden_layers=1)
    talking["rope_scaling"]["mrope_section"] = tiny.MROPE_SECTION
    predictor = tiny.PREDICTOR | dict(hidden_size=48, num_hidden_layers=1)
    talking["code_predictor_config"] |= predictor | dict(layer_types=["full_attention"])
    config = tts.Qwen3TTSConfig.from_hf(values)
    return dataclasses.replace(config, speaker_encoder=None)  # voices are x-vectors


def speaking(config: tts.Qwen3TTSConfig) -> generate.LanguageModel:
    """Random weights, large enough to choose between codes."""
    draw = np.random.default_rng(0)
    shapes = generate.LanguageModel(
        weights.abstract(talker.Talker, config.talker),
        weights.abstract(code_predictor.CodePredictor, config.code_predictor),
    )
    return jax.tree.map(lambda x: draw.standard_normal(x.shape, np.float32), shapes)


def test_a_frame_of_small_codes(text_dir):
    """From a text in the reduced vocabulary to the codes of a frame."""
    config, tokenizer = (
        narrow(text_dir),
        text_tokenizer.TextTokenizer.from_directory(text_dir),
    )
    role, ids = tokenizer.role_and_text_ids("今日は。")
    item = prompt.build(
        config,
        role=role,
        text=ids,
        language="Japanese",
        x_vector=X_VECTOR,
        non_streaming=True,
    )
    assert max(item.text) < VOCABULARY and item.speaker_at > 0

    lm = speaking(config)

    def make(lm, chunk):
        state = generate.init_state(lm, rows=1, size=256)
        state = generate.read_chunk(lm, state, chunk)
        ready = generate.choose_first(lm, state, np.ones(1, bool))
        quiet = np.zeros((1, config.talker.transformer.dim), np.float32)
        return generate.make_frame(lm, ready, quiet, np.ones(1, bool), np.int32([9]))

    chunk = prompt.chunk(config, item, start=0, size=128)
    state, frame = jax.jit(make, compiler_options=examples.QUICK)(lm, chunk)
    assert frame.shape == (1, 16) and frame.max() < small.CODES
    assert state.first < small.CODES  # the end is banned before two frames are made


def test_a_step_of_training(text_dir):
    """At random weights every code is about as likely; what is read is learned."""
    config, tokenizer = (
        narrow(text_dir),
        text_tokenizer.TextTokenizer.from_directory(text_dir),
    )
    role, ids = tokenizer.role_and_text_ids("Où est le chat ?")
    draw = np.random.default_rng(0)
    laid = [
        packed_rows.example(
            config,
            draw.integers(0, small.CODES, (16, 16), np.uint16),
            role=role,
            text=ids,
            language="french",
            voice=X_VECTOR,
            non_streaming=late,
        )
        for late in (True, False)
    ]
    batch = packed_rows.pack(config, [laid], packed_rows.Shape(128, voices=2))
    recipe = examples.recipe(config, optimizer=dict(weight_decay=0.0))
    state = recipe.init(examples.params(config), jax.random.key(0))
    step = jax.jit(recipe.step, compiler_options=examples.QUICK)
    after, found = step(state, batch)
    first, *rest = found["cross_entropy"]
    assert abs(first - np.log(2048)) < 0.2
    assert abs(np.mean(rest) - np.log(small.CODES)) < 0.05
    table = "talker.text_embedding.embedding"
    moved = (np.asarray(state.params[table]) != after.params[table]).any(axis=1)
    said = {*role, *ids, config.tts_pad_id, config.tts_bos_id, config.tts_eos_id}
    assert set(np.flatnonzero(moved)) == said
