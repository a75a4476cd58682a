"""No module ever changes after it is built, and nothing in the source invites it to.

Each public method of each module is traced twice: with the module's arrays as constants
and, as under `jax.jit`, as arguments.  A mutation happens while Python runs, so that
tracing shows it; nothing is compiled.
"""

import ast
import dataclasses
import importlib
import inspect
import pathlib
import pkgutil

import jax
import jax.numpy as jnp
import pytest
from flax import errors, nnx

import qwen3tts_jax
from qwen3tts_jax.config import tiny, tokenizer_12hz, tokenizer_25hz, tts
from qwen3tts_jax.models import code_predictor, speaker_encoder, talker
from qwen3tts_jax.models.tokenizer_12hz import decoder, encoder
from qwen3tts_jax.models.tokenizer_25hz import (
    anti_aliased_snake,
    bigvgan,
    delayed_conv,
    dit,
    dit_blocks,
)
from qwen3tts_jax.models.tokenizer_25hz import encoder as encoders_25hz
from qwen3tts_jax.nn import activations, attention, conv, layers, quantizer, transformer
from qwen3tts_jax.teachers import wavlm, whisper
from qwen3tts_jax.training.codec import discriminators, mel_scaffold

PACKAGE = pathlib.Path(qwen3tts_jax.__file__).parent
TTS = tts.Qwen3TTSConfig.from_hf(tiny.tts_config("base", "1.7B"))
CODEC = tokenizer_12hz.Tokenizer12HzConfig.from_hf(tiny.tokenizer_config())
CODEC_25HZ = tokenizer_25hz.Tokenizer25HzConfig.from_hf(tiny.tokenizer_25hz_config())
STACK = TTS.talker.transformer
WINDOWED = CODEC.decoder.transformer
WIDTH = STACK.dim
GROUPS = TTS.talker.code_groups

B, T, S = 2, 3, 8  # rows, steps, cache slots


# ----------------------------------------------------- how to build and call each


def floats(*shape):
    return jnp.ones(shape)


def ints(*shape):
    return jnp.ones(shape, jnp.int32)


def rope(config):
    return attention.rope_angles(ints(1, T), config.head_dim, config.rope_theta)


def causal():
    return attention.causal_mask(T)


def cached():
    return attention.cache_mask(ints(1, T), S)


def choose(scores, i):
    return jnp.argmax(scores, axis=-1).astype(jnp.int32)


def only(*args):
    """The calls of a module that has nothing but __call__."""
    return lambda part: dict(__call__=[args])


def step_only(x):
    return lambda part: dict(init_state=[(B,)], step=[(x, part.init_state(B))])


def stepped(x):
    return lambda part: step_only(x)(part) | only(x)(part)


def attention_calls(part):
    x = floats(B, T, WIDTH)
    cache = attention.KVCache.zeros(STACK, B, S, jnp.float32)
    return dict(
        __call__=[(x, rope(STACK), causal()), (x, rope(STACK), cached(), cache)]
    )


def transformer_calls(part):
    x, positions = floats(B, T, WIDTH), ints(1, T)
    cache = part.init_cache(B, S, jnp.float32)
    return dict(
        init_cache=[(B, S, jnp.float32)],
        __call__=[(x, positions, causal()), (x, positions, cached(), cache)],
    )


def talker_calls(part):
    return dict(
        embed_text=[(ints(B, T),)],
        embed_codec=[(ints(B, T),)],
        logits=[(floats(B, WIDTH),)],
        __call__=transformer_calls(part.transformer)["__call__"],
    )


def predictor_calls(part):
    hidden, codes = floats(B, TTS.code_predictor.embed_dim), ints(B, GROUPS - 1)
    return dict(
        embed=[(codes,)],
        generate=[(hidden, hidden, choose)],
        __call__=[(hidden, hidden, codes)],
    )


def vq_calls(part):
    return dict(encode=[(floats(B, T, 5), 4)], decode=[(ints(B, T, 4),)])


def trained_vq_calls(part):
    return vq_calls(part) | dict(
        books=[()], quantize=[(floats(B, T, 5), jnp.full(B, 2), 4)]
    )


def decoder_calls(part):
    codes = ints(B, T, CODEC.quantizers)
    properties = dict(dtype=PROPERTY, samples_per_frame=PROPERTY)
    state, c = part.init_state(B), CODEC.decoder
    return (
        stepped(codes)(part)
        | dict(decode=[(codes,)], stream=[(codes, jnp.full(B, T), state)])
        | dict(contextualize=[(floats(B, T, c.codebook_dim), state)])
        | {
            name: [(floats(B, T, c.latent_dim), state)]
            for name in ("upsample_through", "synthesize")
        }
        | properties
    )


def encoder_calls(part):
    wave, length = floats(B, 2 * CODEC.samples_per_frame), ints(B)
    return dict(embed=[(wave, length)], __call__=[(wave, length, CODEC.quantizers)])


def late_calls(channels, **properties):
    """The calls of a part that takes signals, here two of each row side by side."""

    def calls(part):
        groups = getattr(part, "inputs", 1)
        signal = delayed_conv.Signal(
            floats(B, groups, T, channels), ints(B), jnp.full(B, T)
        )
        return step_only(signal)(part) | properties

    return calls


def bigvgan_calls(part):
    mel, state = floats(B, T, part.config.mel_bins), part.init_state(B)
    whole = [(mel,), (mel, ints(B))]
    return dict(
        init_state=[(B,)],
        step=[(mel, state), (mel, state, ints(B))],
        finish=[(state,), (state, ints(B))],
        decode=whole,
        __call__=whole,
        lag=PROPERTY,
        dtype=PROPERTY,
    )


def quantizer_25hz_calls(part):
    return dict(
        project=[(floats(B, T, 5),)],
        encode=[(floats(B, T, 3),)],
        decode=[(ints(B, T),)],
        unproject=[(floats(B, T, 3),)],
    )


def encoder_25hz_calls(part):
    c, length = CODEC_25HZ.encoder, jnp.full(B, 8)
    heard = [(floats(B, 12, c.mel_bins), length)]
    return dict(
        embed=heard,
        codes=heard,
        hidden=heard,
        __call__=heard,
        continued=[(floats(B, 3, c.codebook_dim), length)],
    )


def dit_block_calls(part):
    c = CODEC_25HZ.dit
    shape = (B, 2, c.block)
    angle = floats(*shape, 1, c.head_dim // 2)
    window = dit_blocks.Window(
        floats(*shape, c.dim), (angle, angle), jnp.ones(shape, bool), jnp.ones(B, bool)
    )
    past = floats(B, c.block, c.heads, c.head_dim)
    call = floats(*shape, c.dim), floats(6, c.dim), window, (past, past)
    return dict(__call__=[call])


def dit_calls(part):
    c, length = CODEC_25HZ.dit, jnp.full(B, 12)
    voice, nobody, first = floats(B, c.dim), floats(c.dim), ints(B)
    codes = ints(B, 12)
    window = part.window(codes, length, voice, first, nobody)
    mel = floats(B, 2, c.block, c.mel_bins)
    at = jax.tree.map(lambda x: x[0], part.modulations(floats(1)))
    return dict(
        voice=[(floats(B, c.xvector_dim), floats(B, 12, c.mel_bins), length)],
        nobody=[()],
        window=[(codes, length, voice, first), (codes, length, voice, first, nobody)],
        modulations=[(floats(3),)],
        velocity=[(mel, at, window, part.nothing_before(2 * B))],
        nothing_before=[(B,)],
        back=PROPERTY,
        ahead=PROPERTY,
        dtype=PROPERTY,
    )


def new(kind, *args, **options):
    """A function that makes a new module."""
    if "rngs" not in inspect.signature(kind.__init__).parameters:
        return lambda: kind(*args, **options)
    return lambda: kind(*args, **options, rngs=nnx.Rngs(0))


JUDGES = discriminators.Config(
    periods=(3,),
    period_channels=(2, 2),
    stft_ffts=(16,),
    stft_channels=2,
    spectra=(16,),
)
JUDGED = only(floats(B, 60))


def stack_of_judges():
    rngs = nnx.Rngs(0)
    convs = [discriminators.Conv(4, 4, kernel_size=(3, 3), rngs=rngs) for _ in "ab"]
    return discriminators.Stack(convs, slope=0.1)


WHISPER = whisper.Config(dim=4, heads=2, ffn=6, layers=2, positions=8)
WAVLM = wavlm.Config(
    dim=4,
    heads=2,
    ffn=6,
    layers=2,
    eps=1e-5,
    stable=False,
    extractor_norm="group",
    normalize=True,
    convs=((4, 10, 5), (4, 3, 2)),
    conv_bias=False,
    position_kernel=4,
    position_groups=2,
    buckets=8,
    max_distance=10,
)
RELATIVE = floats(B, T, 4), floats(1, 2, T, T), jnp.ones((B, 1, 1, T), bool)


def layer_calls(*args):
    """The calls of a teacher's encoder, whose last argument names a layer."""
    return lambda part: dict(__call__=[(*args, 1), (*args, "average")])


PROPERTY = "a property"
VQ = dict(size=8, dim=3, outer_dim=5)
X = floats(B, 4, 4)
MEL = floats(B, 12, 16), jnp.full(B, 9)
SE_CONFIG = dataclasses.replace(TTS.speaker_encoder, res2net_scale=4)
MIMI = CODEC.encoder.transformer
WINDOW_CALL = only(
    floats(B, T, WINDOWED.dim),
    rope(WINDOWED),
    attention.window_mask(jnp.full(B, 5), T, WINDOWED.window),
    attention.WindowCache.zeros(WINDOWED, B, jnp.float32),
)

VOCODER = dataclasses.replace(
    CODEC_25HZ.bigvgan,
    channels=16,
    kernel_sizes=(3, 7),
    dilations=((1, 2), (3, 1)),
    upsample_rates=(5, 2, 2),
    upsample_kernel_sizes=(11, 4, 4),
)

# (how to make a module, its calls: part -> {method: list of argument tuples})
TABLE = [
    (new(layers.Linear, 4, 5, bias=True), only(X)),
    (new(layers.Linear, 4, 5), only(X)),
    (new(layers.Embed, 4, 5), only(ints(B, T))),
    (new(layers.RMSNorm, 4, eps=1e-6), only(X)),
    (new(layers.LayerNorm, 4, eps=1e-6), only(X)),
    (new(layers.LayerScale, 4, initial=0.1), only(X)),
    (new(layers.SwiGLU, 4, 5), only(X)),
    (new(layers.GeluMLP, 4, 5), only(X)),
    (new(layers.GeluMLP, 4, 5, bias=True), only(X)),
    (new(conv.CausalConv1d, 4, 5, kernel_size=3, dilation=2), stepped(X)),
    (new(conv.CausalConv1d, 4, 5, kernel_size=4, stride=2, bias=False), stepped(X)),
    (new(conv.CausalConvTranspose1d, 4, 5, kernel_size=4, stride=2), stepped(X)),
    (new(conv.ConvNeXtBlock, 4), stepped(X)),
    (new(activations.SnakeBeta, 4), only(X)),
    (new(quantizer.ResidualVQ, 4, has_initialized=True, **VQ), trained_vq_calls),
    (new(quantizer.SplitResidualVQ, 4, semantic=1, **VQ), vq_calls),
    (new(attention.Attention, STACK), attention_calls),
    (new(attention.Attention, WINDOWED), WINDOW_CALL),
    (new(transformer.Block, STACK), attention_calls),
    (new(transformer.Block, MIMI), only(floats(B, T, MIMI.dim), rope(MIMI), causal())),
    (new(transformer.Transformer, STACK), transformer_calls),
    (new(transformer.Transformer, STACK, stacked=True), transformer_calls),
    (new(talker.TextProjection, 4, 5), only(X)),
    (new(talker.Talker, TTS.talker), talker_calls),
    (new(talker.Talker, TTS.talker, stacked=True), talker_calls),
    (new(code_predictor.CodePredictor, TTS.code_predictor), predictor_calls),
    (
        new(code_predictor.CodePredictor, TTS.code_predictor, stacked=True),
        predictor_calls,
    ),
    (new(speaker_encoder.TDNN, 16, 5, kernel_size=3, dilation=2), only(*MEL)),
    (new(speaker_encoder.TDNN, 16, 5), only(*MEL)),
    (
        new(speaker_encoder.SERes2NetBlock, SE_CONFIG, 16, kernel_size=3, dilation=2),
        only(*MEL),
    ),
    (new(speaker_encoder.AttentivePooling, 16, hidden=4), only(*MEL)),
    (
        new(speaker_encoder.SpeakerEncoder, TTS.speaker_encoder),
        only(floats(B, 12, TTS.speaker_encoder.mel_bins), jnp.full(B, 9)),
    ),
    (new(decoder.ResidualUnit, 4, dilation=3), step_only(X)),
    (new(decoder.DecoderBlock, 4, rate=2), step_only(X)),
    (new(decoder.UpsampleBlock, 4, ratio=2), step_only(X)),
    (new(decoder.Decoder, CODEC.decoder), decoder_calls),
    (new(encoder.ResidualUnit, 4, hidden=2, kernel_size=3, dilation=2), only(X)),
    (
        new(encoder.DownsampleBlock, CODEC.encoder, 4, ratio=2),
        only(X, jnp.full(B, 3)),
    ),
    (new(encoder.Encoder, CODEC.encoder), encoder_calls),
    (
        new(encoders_25hz.Block, 4, 2),
        only(floats(B, T, 4), jnp.ones((B, T, T), bool)),
    ),
    (new(encoders_25hz.Quantizer, 8, 3, outer_dim=5), quantizer_25hz_calls),
    (
        new(anti_aliased_snake.AntiAliasedSnakes, 4, groups=2),
        late_calls(4, delay=PROPERTY),
    ),
    (new(delayed_conv.Convs, 4, 5, kernel_sizes=(3, 7)), late_calls(4)),
    (new(delayed_conv.Upsample, 4, 5, kernel_size=7, rate=3), late_calls(4)),
    (
        lambda: delayed_conv.Chain([anti_aliased_snake.AntiAliasedSnakes(4)]),
        late_calls(4, delay=PROPERTY),
    ),
    (new(bigvgan.Stage, VOCODER, 0), late_calls(VOCODER.channels, delay=PROPERTY)),
    (new(bigvgan.Stage, VOCODER, 2), late_calls(VOCODER.channels >> 2, delay=PROPERTY)),
    (new(bigvgan.BigVGAN, VOCODER), bigvgan_calls),
    (new(encoders_25hz.Encoder, CODEC_25HZ.encoder), encoder_25hz_calls),
    (new(dit.TimeEmbedding, 4), only(floats(3))),
    (new(dit_blocks.Block, CODEC_25HZ.dit, back=True, ahead=True), dit_block_calls),
    (new(dit.DiT, CODEC_25HZ.dit), dit_calls),
    (new(discriminators.Conv, 4, 5, kernel_size=(3, 3)), only(floats(B, 3, 4, 4))),
    (stack_of_judges, only(floats(B, 3, 4, 4))),
    (new(discriminators.PeriodDiscriminator, JUDGES, period=3), JUDGED),
    (new(discriminators.STFTDiscriminator, JUDGES, window=16), JUDGED),
    (new(discriminators.SpectrumDiscriminator, JUDGES, window=16), JUDGED),
    (new(discriminators.Discriminators, JUDGES), JUDGED),
    (
        new(mel_scaffold.MelEncoder, 2, 5),
        only(floats(B, 2 * T, mel_scaffold.BINS)),
    ),
    (new(whisper.Block, WHISPER), only(X)),
    (new(whisper.Encoder, WHISPER), layer_calls(floats(B, 6, 80))),
    (new(wavlm.ExtractorLayer, WAVLM, 0), only(floats(B, 40, 1), jnp.full(B, 7))),
    (new(wavlm.PositionConv, WAVLM), only(X)),
    (new(wavlm.Attention, WAVLM), only(*RELATIVE)),
    (new(wavlm.Block, WAVLM), only(*RELATIVE)),
    (new(wavlm.Encoder, WAVLM), layer_calls(floats(B, 90), jnp.full(B, 80))),
]
ABSTRACT = [jax.eval_shape(build) for build, _ in TABLE]


# --------------------------------------------------------------- nothing changes


def module_classes() -> list[type]:
    found = {}
    for info in pkgutil.walk_packages(qwen3tts_jax.__path__, "qwen3tts_jax."):
        for value in vars(importlib.import_module(info.name)).values():
            if inspect.isclass(value) and issubclass(value, nnx.Module):
                if value.__module__ == info.name:
                    found[f"{info.name}.{value.__qualname__}"] = value
    return [found[name] for name in sorted(found)]


def public_methods(kind: type) -> set[str]:
    """Names that the package itself gives the class; inherited ones of its own too."""
    return {
        name
        for base in kind.__mro__
        if base.__module__.startswith("qwen3tts_jax")
        for name in vars(base)
        if name == "__call__" or not name.startswith("_")
    }


def test_the_table_names_every_module():
    assert {type(part) for part in ABSTRACT} == set(module_classes())


def case_id(value) -> str:
    kind = type(value)
    return f"{kind.__module__.removeprefix('qwen3tts_jax.')}.{kind.__name__}"


CASES = [
    pytest.param(part, calls, id=case_id(part))
    for part, (_, calls) in zip(ABSTRACT, TABLE)
]


@pytest.mark.parametrize("part, make_calls", CASES)
def test_no_call_changes_a_module(part, make_calls):
    part = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), part)
    calls = make_calls(part)
    assert set(calls) >= public_methods(type(part)), "a method is never called"
    for name, arguments in calls.items():
        if arguments == PROPERTY:
            with unchanged(part):
                getattr(part, name)
        else:
            for args in arguments:
                trace(part, name, args)


class unchanged:
    """Asserts that the same arrays, and the same static fields, come out of a block."""

    def __init__(self, part):
        self.part = part

    def __enter__(self):
        self.leaves, self.structure = jax.tree.flatten(self.part)

    def __exit__(self, kind, error, traceback):
        if error is None:
            leaves, structure = jax.tree.flatten(self.part)
            assert structure == self.structure
            assert all(a is b for a, b in zip(leaves, self.leaves, strict=True))


def trace(part, name: str, args) -> None:
    dynamic = [i for i, a in enumerate(args) if is_arrays(a)]

    def call(part, values):
        filled = list(args)
        for i, value in zip(dynamic, values):
            filled[i] = value
        with unchanged(part):
            return getattr(part, name)(*filled)

    values = [args[i] for i in dynamic]
    with unchanged(part):
        closed = jax.eval_shape(lambda values: call(part, values), values)
    with unchanged(part):
        passed = jax.eval_shape(call, part, values)
    assert jax.tree.leaves(closed), f"{name} returned nothing"
    assert jax.tree.structure(closed) == jax.tree.structure(passed)


def is_arrays(value) -> bool:
    leaves = jax.tree.leaves(value)
    return bool(leaves) and all(isinstance(leaf, jax.Array) for leaf in leaves)


def test_a_change_is_noticed():
    class Counting(nnx.Module):
        def __init__(self):
            self.count = nnx.Param(jnp.zeros(()))

        def __call__(self, x):
            self.count[...] = self.count[...] + 1
            return x

    class Remembering(Counting):
        def __call__(self, x):
            self.last = 3
            return x

    for kind in (Counting, Remembering):
        with pytest.raises((AssertionError, errors.TraceContextError)):
            trace(kind(), "__call__", (floats(2),))


# ----------------------------------------------------------------------- style

ALLOWED = {
    "Module",
    "Param",
    "Variable",
    "Rngs",
    "List",
    "split",
    "merge",
    "state",
    "to_pure_dict",
}
SOURCES = sorted(PACKAGE.rglob("*.py"))


def nodes(kind):
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, kind):
                yield f"{path.relative_to(PACKAGE)}:{getattr(node, 'lineno', 0)}", node


def test_only_values_are_taken_from_nnx():
    """No nnx.jit, grad, scan, vmap, Optimizer, Cache, BatchNorm, Dropout, ..."""
    bad = []
    for where, node in nodes((ast.Attribute, ast.ImportFrom, ast.Import)):
        if isinstance(node, ast.Attribute):
            if isinstance(node.value, ast.Name) and node.value.id == "nnx":
                bad += [f"{where} nnx.{node.attr}"] * (node.attr not in ALLOWED)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith(
            "flax"
        ):
            for alias in node.names:
                known = node.module == "flax" and alias.name in ("nnx", "struct")
                plain = alias.asname is None
                bad += [f"{where} {alias.name}"] * (not (known and plain))
        elif isinstance(node, ast.Import):
            bad += [f"{where} {a.name}" for a in node.names if "flax" in a.name]
    assert not bad, "\n".join(bad)


def is_module_class(node: ast.ClassDef) -> bool:
    return any(ast.unparse(base) == "nnx.Module" for base in node.bases)


def test_modules_set_attributes_in_init_alone():
    bad = []
    for where, node in nodes(ast.ClassDef):
        if not is_module_class(node):
            continue
        for method in node.body:
            if getattr(method, "name", "") == "__init__":
                continue
            for part in ast.walk(method):
                if isinstance(part, ast.Attribute | ast.Subscript) and isinstance(
                    part.ctx, ast.Store | ast.Del
                ):
                    if ast.unparse(part).startswith("self."):
                        bad.append(f"{where} {ast.unparse(part)} in {method.name}")
    assert not bad, "\n".join(bad)


def test_random_generators_are_not_stored():
    bad = []
    for where, node in nodes((ast.Assign, ast.AnnAssign)):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        stored = any("self." in ast.unparse(target) for target in targets)
        value = "" if node.value is None else ast.unparse(node.value)
        if stored and (value == "rngs" or value.startswith("nnx.Rngs")):
            bad.append(f"{where} {ast.unparse(node)}")
    assert not bad, "\n".join(bad)
    for part in ABSTRACT:  # a stored generator would show its key and its count
        for leaf in jax.tree.leaves(part):
            assert jnp.issubdtype(leaf.dtype, jnp.floating)


def test_only_main_functions_print():
    bad = []
    for path in SOURCES:
        tree = ast.parse(path.read_text("utf-8"))
        mains = [
            node
            for node in tree.body
            if isinstance(node, ast.FunctionDef) and node.name == "main"
        ]
        allowed = {id(node) for main in mains for node in ast.walk(main)}
        bad += [
            f"{path.relative_to(PACKAGE)}:{node.lineno}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Call)
            and ast.unparse(node.func) == "print"
            and id(node) not in allowed
        ]
    assert not bad, "\n".join(bad)
