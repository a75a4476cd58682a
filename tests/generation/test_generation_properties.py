"""What generation promises whatever the weights: repeatable draws, rows that do not
touch each other, limits, and no compilation in service."""

import dataclasses
import functools

import contract
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from qwen3tts_jax.config import tiny, tts
from qwen3tts_jax.generation import generate, prompt, sampling
from qwen3tts_jax.models import code_predictor, talker

CONFIG = tts.Qwen3TTSConfig.from_hf(tiny.tts_config("base"))
CODES = 2048  # ids below are codes, above are marks
FRAMES = 12
OPTIONS = sampling.Options(max_new_tokens=FRAMES + 1)


@pytest.fixture(scope="module")
def lm():
    """A language model with random weights: it never finds its end in a few frames."""
    return generate.LanguageModel(
        talker=contract.random_part(
            lambda: talker.Talker(CONFIG.talker, rngs=nnx.Rngs(0))
        ),
        predictor=contract.random_part(
            lambda: code_predictor.CodePredictor(
                CONFIG.code_predictor, rngs=nnx.Rngs(0)
            )
        ),
    )


@pytest.fixture(scope="module")
def ending(lm):
    """The same, but its end token has far the longest row: best every few frames."""
    eos = CONFIG.talker.codec_eos_id

    def longer(path, leaf):
        at_head = "codec_head" in jax.tree_util.keystr(path)
        return leaf.at[:, eos].mul(8) if at_head else leaf

    return jax.tree_util.tree_map_with_path(longer, lm)


def make_prompt(tokens: int, seed: int = 0, instruct=None) -> prompt.Prompt:
    rng = np.random.default_rng(seed)
    return prompt.build(
        CONFIG,
        role=[1, 2, 3],
        instruct=instruct,
        text=rng.integers(0, 1000, tokens).tolist(),
        x_vector=rng.standard_normal(CONFIG.talker.transformer.dim),
        non_streaming=False,
    )


# Streaming prompts are equally long, whatever the text; an instruction lengthens one.
SHORT, LONG = make_prompt(2, seed=1), make_prompt(9, seed=2)
LONGER = make_prompt(9, seed=3, instruct=list(range(100, 111)))


def run(lm, prompts, options=OPTIONS, *, seed=3, guard=False, **progress):
    return generate.generate(
        lm, CONFIG, prompts, options, seed=seed, guard=guard, **progress
    )


def codes(made):
    return [m.codes for m in made]


def assert_same(one, other):
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


# ------------------------------------------------------------------------- draws


def test_a_seed_repeats_the_draws_and_another_does_not(lm):
    first, again = (codes(run(lm, [SHORT, LONG])) for _ in range(2))
    assert_same(first, again)
    for a, b in zip(first, codes(run(lm, [SHORT, LONG], seed=4))):
        assert (a[0] != b[0]).any()


def test_codes_are_codes(lm):
    for made in codes(run(lm, [SHORT, LONG])):
        assert made.dtype == np.int32 and made.shape == (FRAMES, 16)
        assert made.min() >= 0 and made.max() < CODES


def test_equal_prompts_in_a_batch_are_spoken_differently(lm):
    first, second = codes(run(lm, [LONG, LONG]))
    assert (first[0] != second[0]).any()
    greedy = dataclasses.replace(OPTIONS, do_sample=False, subtalker_dosample=False)
    assert_same(*([c] for c in codes(run(lm, [LONG, LONG], greedy))))


@pytest.mark.parametrize("model", ["lm", "ending"])
def test_a_row_does_not_know_its_neighbours(model, request):
    """Bit for bit, also when they are longer or end earlier."""
    model = request.getfixturevalue(model)
    others = [SHORT, LONGER, make_prompt(14, seed=8)]
    rows = [codes(run(model, [LONG, other])) for other in others]
    for first, second in rows[1:]:
        np.testing.assert_array_equal(first, rows[0][0])
        assert second.shape != rows[0][1].shape or (second != rows[0][1]).any()


def test_every_draw_has_its_own_randomness(lm):
    """Without weights all scores are equal, and a code shows nothing but its draw."""
    blank = jax.tree.map(jnp.zeros_like, lm)
    free = dataclasses.replace(OPTIONS, top_k=0, subtalker_top_k=0)
    made = np.stack(codes(run(blank, [SHORT, LONG], free)))  # [B, T, Q]
    # of 384 draws from 2048 codes some 35 repeat another
    assert len(np.unique(made)) > 320


def states(lm, prompts, frames=3, size=256, **changed):
    """Hidden states [B, D] after the prompts and after some frames."""
    choices, count = OPTIONS.sampling(), len(prompts)
    rows = [
        generate.read_prompt(lm, CONFIG, p, choices, generate.row_key(i), size=size)
        for i, p in enumerate(prompts)
    ]
    state = generate.jit_init(lm, rows=count, size=size)
    for slot, row in enumerate(rows):
        state = generate.jit_insert(state, row, np.int32(slot))
    first = np.asarray(state.hidden)
    text, limit = np.full((count, 4), 7, np.int32), np.full(count, FRAMES, np.int32)
    active = np.ones(count, bool)
    state, _ = generate.jit_advance(lm, state, text, np.int32(frames), active, limit)
    return np.stack([first, state.hidden])


def test_a_prompt_gives_the_same_in_chunks_of_any_size(lm, monkeypatch):
    """Hidden states after the prompt and 3 frames.  1e-5: float32 through 3 layers."""
    usual = states(lm, [SHORT, LONGER])
    for chunks in ((8, 16), (5, 100)):
        monkeypatch.setattr(generate, "PROMPT_CHUNKS", chunks)
        other = states(lm, [SHORT, LONGER])
        np.testing.assert_allclose(other, usual, rtol=1e-5, atol=1e-5)


def test_a_prompt_gives_the_same_in_a_larger_cache(lm):
    small, large = (states(lm, [SHORT, LONGER], size=size) for size in (64, 256))
    np.testing.assert_allclose(small, large, rtol=1e-5, atol=1e-5)


def test_a_row_without_a_voice_does_not_read_the_vector(lm, monkeypatch):
    chunk = prompt.chunk

    def voiceless(*args, **kwargs):
        nothing = dict(speaker=np.full((1, CONFIG.talker.transformer.dim), np.nan))
        nothing["speaker"] = nothing["speaker"].astype(np.float32)
        return chunk(*args, **kwargs) | nothing | dict(speaker_at=np.int32([-1]))

    monkeypatch.setattr(prompt, "chunk", voiceless)
    assert np.isfinite(states(lm, [SHORT, LONGER])).all()


def test_a_resting_row_stays_as_it_is(lm):
    """Bit for bit, whatever the other row does, also when its cache is nearly full."""
    choices = OPTIONS.sampling()
    rows = [
        generate.read_prompt(lm, CONFIG, p, choices, generate.row_key(i), size=64)
        for i, p in enumerate((SHORT, LONGER))
    ]
    state = generate.jit_init(lm, rows=2, size=64)
    for slot, row in enumerate(rows):
        state = generate.jit_insert(state, row, np.int32(slot))
    text, limit = np.full((2, 4), 7, np.int32), np.full(2, 60, np.int32)

    def run(state, actives):
        state, made = jax.tree.map(jnp.copy, state), []
        for active in actives:
            state, frames = generate.jit_advance(
                lm, state, text, np.int32(4), np.array(active), limit
            )
            made.append(np.asarray(frames.codes[1]) if active[1] else None)
            assert frames.count.tolist() == [4 * a for a in active]
        return [m for m in made if m is not None]

    together = run(state, [[True, True], [True, True]])
    apart = run(state, [[True, False], [True, True], [True, False], [False, True]])
    np.testing.assert_array_equal(together, apart)


# ------------------------------------------------------- cache, progress, limits


def test_a_cache_that_grows_changes_nothing(lm, monkeypatch):
    """Prompts of 9 and 20 positions and 12 frames; room for 11 frames, then for all."""
    whole = codes(run(lm, [SHORT, LONGER]))
    sizes, grow = [], generate.jit_grow
    monkeypatch.setattr(generate, "CACHE_BUCKETS", (32, 44))
    monkeypatch.setattr(generate, "GUARD_MIN_FRAMES", 4)
    monkeypatch.setattr(generate, "GROUP", 4)

    def noted(state, *, size):
        sizes.append((int(state.step.max()), size))
        return grow(state, size=size)

    monkeypatch.setattr(generate, "jit_grow", noted)
    grown = codes(run(lm, [SHORT, LONGER]))
    assert sizes == [(8, 44)]
    assert_same(grown, whole)


def test_progress_is_reported_every_so_many_frames(lm):
    calls = []
    reported = run(lm, [SHORT, LONG], report_every=5, on_progress=calls.append)
    assert calls == [5, 10, 12]
    assert_same(codes(reported), codes(run(lm, [SHORT, LONG])))
    calls.clear()
    run(lm, [SHORT, LONG], on_progress=calls.append)
    assert calls == [FRAMES]


def test_max_new_tokens_allows_one_frame_less(lm):
    made = run(lm, [SHORT, LONG], dataclasses.replace(OPTIONS, max_new_tokens=6))
    assert [len(m.codes) for m in made] == [5, 5]
    assert [m.stop_reason for m in made] == ["max_frames", "max_frames"]


def test_guard_constants():
    """At least 192 frames, 12 for a token; never more than max_new_tokens allows."""
    assert (generate.GUARD_MIN_FRAMES, generate.GUARD_FRAMES_PER_TOKEN) == (192, 12)
    guards = [generate.guard_frames(tokens) for tokens in (1, 16, 17, 100)]
    assert guards == [192, 192, 204, 1200]


def test_most_frames_is_what_is_asked_for_or_what_the_positions_allow():
    options, positions = sampling.Options(max_new_tokens=300), 32768
    most = functools.partial(generate.most_frames, CONFIG)
    for guard in (True, False):
        assert most(20, options, guard) == 299
        assert most(positions - 300, options, guard) == 299
        with pytest.raises(ValueError, match="shorten the text or max_new_tokens"):
            most(positions - 1, options, guard)
    assert most(positions - 299, options, True) == 298
    with pytest.raises(ValueError, match="shorten the text or max_new_tokens"):
        most(positions - 299, options, False)


def test_the_guard_stops_each_row_at_its_own_limit(lm, monkeypatch):
    monkeypatch.setattr(generate, "GUARD_MIN_FRAMES", 4)
    monkeypatch.setattr(generate, "GUARD_FRAMES_PER_TOKEN", 1)
    prompts = [SHORT, LONG]  # 2 and 9 tokens
    free = sampling.Options(max_new_tokens=1000)
    made = run(lm, prompts, free, guard=True)
    assert [len(m.codes) for m in made] == [4, 9]
    assert [m.stop_reason for m in made] == ["guard", "guard"]
    # a row that was stopped goes on to be what it was
    assert_same(codes(made), [c[:n] for c, n in zip(codes(run(lm, prompts)), (4, 9))])
    made = run(lm, prompts, dataclasses.replace(OPTIONS, max_new_tokens=8), guard=True)
    assert [(len(m.codes), m.stop_reason) for m in made] == [
        (4, "guard"),
        (7, "max_frames"),
    ]


def test_a_row_ends_at_its_end_token(ending):
    lengths = set()
    for seed in range(4):
        for made in run(ending, [SHORT, LONG], seed=seed):
            full = len(made.codes) == FRAMES
            assert made.stop_reason == ("max_frames" if full else "eos")
            assert len(made.codes) >= 2  # the end is banned for the first two
            assert made.codes.max(initial=0) < CODES
            lengths.add(len(made.codes))
    assert len(lengths) > 2


# ------------------------------------------------------------------- compilation


def test_other_texts_of_a_bucket_compile_nothing(lm, compiled):
    run(lm, [SHORT, LONG])
    before = len(compiled())
    run(lm, [LONGER, make_prompt(5)], seed=12345)
    assert compiled()[before:] == []


def test_another_number_of_frames_compiles_nothing(lm, compiled):
    run(lm, [SHORT, LONG])
    before = len(compiled())
    for frames in (10, 11):  # as many as in no other test
        run(lm, [SHORT, LONG], dataclasses.replace(OPTIONS, max_new_tokens=frames + 1))
    assert compiled()[before:] == []


def test_sampling_options_compile_nothing(lm, compiled):
    usual = codes(run(lm, [SHORT, LONG]))
    before = len(compiled())
    changes = dict(
        do_sample=False,
        top_k=0,
        top_p=0.5,
        temperature=0.3,
        repetition_penalty=0.05,  # rewards them, so that it shows
        subtalker_dosample=False,
        subtalker_top_k=5,
        subtalker_top_p=0.5,
        subtalker_temperature=3.0,
    )
    for name, value in changes.items():
        options = dataclasses.replace(OPTIONS, **{name: value})
        made = codes(run(lm, [SHORT, LONG], options))
        assert any((a != b).any() for a, b in zip(made, usual)), name
    assert compiled()[before:] == []
    known = {field.name for field in dataclasses.fields(sampling.Options)}
    assert known == {*changes, "max_new_tokens"}
