"""A model that has learned eight utterances by heart says them, as users make it speak.

This needs every joint to fit: layouts, labels, voices, the end, the two parts' losses,
the export, and generation.
"""

import examples
import jax
import numpy as np
import pytest

from data.loading import packed_rows
from qwen3tts_jax import Qwen3TTSModel
from qwen3tts_jax.checkpoints import hub
from qwen3tts_jax.training.lm import export, initialization, train_step

TEXTS = (
    "Good morning.",
    "The train leaves at nine.",
    "Wo ist der Bahnhof?",
    "你好,世界。",
    "One, two, three.",
    "Il fait beau.",
    "Nobody came.",
    "Read this slowly, please.",
)
LANGUAGES = (None, "English", "German", "Chinese", None, "French", None, "English")
NON_STREAMING = (False, True, False, True, True, False, True, False)
STEPS, LENGTH = 48, 128
FREEZE = (r"^talker\.text_embedding\.", r"^speaker_encoder\.")
LEAST = 0.99  # of the codes: a near tie may fall the other way in another program
GREEDY = dict(
    do_sample=False,
    subtalker_dosample=False,
    repetition_penalty=1.0,  # random codes repeat
    max_new_tokens=33,
)


@pytest.fixture(scope="module")
def utterances(tokenizer) -> list[packed_rows.Example]:
    """The texts with random codes and voices."""
    draw, made = np.random.default_rng(0), []
    for said, language, non_streaming in zip(TEXTS, LANGUAGES, NON_STREAMING):
        role, ids = tokenizer.role_and_text_ids(said)
        codes = draw.integers(0, 2048, (int(draw.integers(8, 17)), 16))
        made.append(
            packed_rows.example(
                examples.WHOLE,
                codes,
                role=role,
                text=ids,
                language=language or "auto",
                voice=draw.standard_normal(64, np.float32),
                non_streaming=non_streaming,
            )
        )
    return made


@pytest.fixture(scope="module")
def exported(utterances, checkpoint, tmp_path_factory):
    """A checkpoint that has learned them, from a random one."""
    source, out = checkpoint("base"), tmp_path_factory.mktemp("learned") / "out"
    recipe = examples.recipe(
        examples.WHOLE,
        steps=STEPS,
        peak=8e-3,
        packing=dict(predictor_fraction=0.5),
        optimizer=dict(b2=0.9, weight_decay=0.0, freeze=FREEZE),
    )
    parts = initialization.from_official(source, examples.WHOLE)
    state = jax.jit(recipe.init)(train_step.flatten(parts), jax.random.key(1))
    rows = [utterances[:4], utterances[4:]]
    batch = packed_rows.pack(examples.WHOLE, rows, packed_rows.Shape(LENGTH, voices=4))
    options = examples.compiler(1)
    step = jax.jit(recipe.step, donate_argnums=0, compiler_options=options)
    for _ in range(STEPS):
        state, _ = step(state, batch)
    config = hub.read_json(source / "config.json")
    export.export(out, recipe.model(state), config, source, dtype=None)
    return out


def test_what_was_learned_is_said(utterances, exported):
    """Frame for frame, and not a frame more: the end is learned too."""
    model = Qwen3TTSModel.from_pretrained(exported, dtype="float32")
    equal = []
    for non_streaming in (False, True):
        mine = [i for i, flag in enumerate(NON_STREAMING) if flag is non_streaming]
        voices = dict(
            ref_code=[None] * len(mine),
            ref_spk_embedding=[utterances[i].voice for i in mine],
            x_vector_only_mode=[True] * len(mine),
            icl_mode=[False] * len(mine),
        )
        waves, _, said = model.generate_voice_clone(
            [TEXTS[i] for i in mine],
            [LANGUAGES[i] for i in mine],
            voice_clone_prompt=voices,
            non_streaming_mode=non_streaming,
            return_codes=True,
            **GREEDY,
        )
        for i, wave, codes in zip(mine, waves, said, strict=True):
            learned = utterances[i].codes
            assert len(codes) == len(learned) and len(wave) == 1920 * len(codes)
            equal.append(codes == learned)
    share = np.concatenate(equal).mean(axis=0)  # [16]
    assert share[0] >= LEAST and share.mean() >= LEAST, share
