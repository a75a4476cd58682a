"""Streams of 25Hz checkpoints: chunks of 8 codes, the first sound after 16.

With a solver of one step a block depends on one block after it, so that the usual
stream, which waits for one, is what whole decoding gives.
"""

import functools

import jax
import numpy as np
import pytest
import voices

from qwen3tts_jax import Qwen3TTSModel
from qwen3tts_jax.audio import io as audio_io
from qwen3tts_jax.generation import generate
from qwen3tts_jax.models.tokenizer_25hz import flow_matching
from qwen3tts_jax.serving import engine as engines
from qwen3tts_jax.serving import session

FRAMES = 29
OPTIONS = dict(max_new_tokens=FRAMES + 1, seed=11)
HOP, CHUNK = 960, 8
VOICES = {
    "speaker": ("custom_voice_25hz", dict(speaker="Eric", language="Chinese")),
    "x-vector": ("base_25hz", dict(x_vector_only_mode=True)),
    "clone": ("base_25hz", dict(ref_text=voices.TRANSCRIPT, language="English")),
}


class Models(voices.Models):
    """Of 25 Hz, with the quick solver; names are those of VOICES."""

    @functools.cache  # noqa: B019 (lives as long as the tests)
    def get(self, variant: str, eos_gain: float = 1.0) -> Qwen3TTSModel:
        tts = super().get(variant, eos_gain)
        quick = tts.speech_tokenizer.streaming(solver=flow_matching.Solver(steps=2))
        tts.speech_tokenizer = quick
        return tts

    @functools.cache  # noqa: B019
    def voice(self, name: str, whole: bool):
        """(model, Voice); its recording is analysed once."""
        variant, request = VOICES[name]
        request, tts = dict(request), self.get(variant)
        if variant == "base_25hz":
            wave, rate = audio_io.read(voices.RECORDING)
            analysis = {k: v for k, v in request.items() if k != "language"}
            item = tts.create_voice_clone_prompt((wave[: 2 * rate], rate), **analysis)
            request = dict(voice_clone_prompt=item, language=request.get("language"))
        return tts, tts.voice(non_streaming_mode=whole, **request)

    @functools.cache  # noqa: B019
    def offline(self, name: str, whole: bool, text: str = voices.TEXT, **options):
        """(wave, codes) of the whole utterance."""
        tts, voice = self.voice(name, whole)
        [speech] = tts.speak([tts.utterance(text, voice)], **(OPTIONS | options))
        return speech.wave, speech.codes

    def open(self, name: str, whole: bool, **options) -> session.StreamingSession:
        tts, voice = self.voice(name, whole)
        return session.StreamingSession(tts, voice, **(OPTIONS | options))


@pytest.fixture(scope="module")
def models(checkpoint) -> Models:
    return Models(checkpoint)


def spoken(opened, text: str = voices.TEXT) -> list[np.ndarray]:
    return list(opened.speak(text))


def samples_after(codes: int, lag: int, reference: int = 0) -> int:
    """What has been heard with so many codes, before the end."""
    blocks = max(0, (reference + codes) // CHUNK - 1)
    return max(0, blocks * CHUNK * HOP - lag - reference * HOP)


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("name", VOICES)
def test_a_stream_is_the_offline_utterance(models, name, whole):
    opened = models.open(name, whole)
    chunks = spoken(opened)
    wave, codes = models.offline(name, whole)
    assert codes.shape == (FRAMES, 1) and len(wave) == FRAMES * HOP
    voices.assert_same(chunks, opened.codes, (wave, codes))
    assert opened.stop_reason == "max_frames"
    tts, voice = models.voice(name, whole)
    known, lag = len(voice.codec.codes), tts.speech_tokenizer.bigvgan.lag
    assert (known > 0) == (name == "clone")
    heard = [samples_after(n, lag, known) for n in (8, 16, 24)]
    expected = [n for n in np.diff([0, *heard, FRAMES * HOP]) if n]
    # the last group of 5 codes may finish a block; the rest comes when it has ended
    lengths = [len(chunk) for chunk in chunks]
    assert lengths[: len(expected) - 1] == expected[:-1]
    assert sum(lengths) == FRAMES * HOP


def test_text_in_pieces(models):
    """Groups of fewer than 8 codes, where text comes bit by bit; nothing waits for what
    cannot come."""
    opened = models.open("speaker", False, text_timeout=5.0)
    chunks = list(opened.speak(iter(voices.TEXT)))
    voices.assert_same(chunks, opened.codes, models.offline("speaker", False))
    opened = models.open("speaker", False)
    opened.push_text(voices.TEXT[:-3])  # enough for 16 codes
    chunks = [opened.read()]
    opened.push_text(voices.TEXT[-3:])
    opened.end_text()
    chunks += list(opened)
    voices.assert_same(chunks, opened.codes, models.offline("speaker", False))


def test_the_end_token_ends_a_stream(models):
    """At any place in a block; all of the sound comes."""
    tts = models.get("custom_voice_25hz", eos_gain=8.0)
    voice, counts = tts.voice(speaker="Ryan", non_streaming_mode=False), set()
    for seed in range(4):
        options = dict(seed=seed, max_new_tokens=30)
        utterance = tts.utterance("Hello there.", voice)
        [offline] = tts.speak([utterance], **options)
        opened = session.StreamingSession(tts, voice, **options)
        chunks = spoken(opened, "Hello there.")
        voices.assert_same(chunks, opened.codes, (offline.wave, offline.codes))
        assert opened.stop_reason == offline.stop_reason
        counts.add((offline.stop_reason, len(offline.codes) % CHUNK))
    assert len({count for reason, count in counts if reason == "eos"}) > 1


# --------------------------------------------------------------------- shared slots


def requests() -> list[dict]:
    return [
        dict(name=name, text=text, options=dict(seed=i, max_new_tokens=frames + 1))
        for i, (name, text, frames) in enumerate(
            [
                ("clone", "The ship left the harbour at dawn.", 19),
                ("x-vector", "Nobody waved it goodbye.", 11),
                ("clone", "Hello!", 26),
            ]
        )
    ]


def open_all(models, engine, wanted) -> list[session.StreamingSession]:
    opened = []
    for request in wanted:
        one = models.open(request["name"], False, engine=engine, **request["options"])
        one.push_text(request["text"])
        one.end_text()
        opened.append(one)
    return opened


def assert_all_as_alone(models, wanted, opened) -> None:
    chunks = [[] for _ in opened]
    while not all(one._stream.over and not one._stream.chunks for one in opened):
        for mine, one in zip(chunks, opened):
            chunk = one.read()
            mine += [] if chunk is None else [chunk]
    for request, one, mine in zip(wanted, opened, chunks):
        offline = models.offline(
            request["name"], False, text=request["text"], **request["options"]
        )
        voices.assert_same(mine, one.codes, offline)


def test_streams_share_slots_and_survive_a_device_error(models, monkeypatch):
    """Three in two slots; once the device fails, and they go on from their codes."""
    engine = engines.Engine(models.get("base_25hz"), slots=2)
    run, calls = engines._run_group, iter(range(1000))

    def fails(lm, decoder, state, codec, *rest):
        if next(calls) == 1:
            jax.tree.map(lambda x: x.delete(), (state, codec))
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
        return run(lm, decoder, state, codec, *rest)

    monkeypatch.setattr(engines, "_run_group", fails)
    wanted = requests()
    assert_all_as_alone(models, wanted, open_all(models, engine, wanted))
    assert next(calls) > 5 and engine._state is None


def test_nothing_is_compiled_in_service(models, monkeypatch, compiled):
    monkeypatch.setattr(generate, "CACHE_BUCKETS", (256,))
    tts = models.get("base_25hz")
    tts.warmup(positions=256, reference_seconds=1.2)
    before = len(compiled())
    rng = np.random.default_rng(0)
    wave = rng.uniform(-0.3, 0.3, 24000).astype(np.float32)
    for request in (dict(x_vector_only_mode=True), dict(ref_text="One, two.")):
        voice = tts.voice(ref_audio=(wave, 24000), **request)
        opened = session.StreamingSession(tts, voice, seed=1, max_new_tokens=21)
        assert sum(map(len, spoken(opened, "Three, four."))) == 20 * HOP
    assert compiled()[before:] == []


# ------------------------------------------------------------------------- mistakes


def test_the_schedule_is_that_of_the_codec(models):
    tts, voice = models.voice("speaker", True)
    assert engines.Engine(tts).schedule == (CHUNK,)
    engines.Engine(tts, schedule=(CHUNK,))
    for schedule in ((1, 2, 4, 8), (4,), ()):
        with pytest.raises(ValueError, match=r"schedule.*\(8,\)"):
            session.StreamingSession(tts, voice, schedule=schedule)


def test_a_voice_that_the_codec_does_not_know(models):
    tts, _ = models.voice("x-vector", True)
    item = dict(
        ref_code=[None],
        ref_spk_embedding=[np.zeros(64, np.float32)],
        x_vector_only_mode=[True],
        icl_mode=[False],
    )
    with pytest.raises(ValueError, match="decoder_voice.*create_voice_clone_prompt"):
        tts.voice(voice_clone_prompt=item)
