"""Tiny models of every variant, their layouts, and what they make offline."""

import dataclasses
import functools
import pathlib

import numpy as np

from qwen3tts_jax import Qwen3TTSModel
from qwen3tts_jax.serving import session

FRAMES = 23
OPTIONS = dict(max_new_tokens=FRAMES + 1, seed=11)
RECORDING = str(pathlib.Path(__file__).parents[1] / "recordings" / "allison_en.flac")
TRANSCRIPT = (
    "Your call is now first in line and will be answered by the next available "
    "representative."
)
TEXT = "Don't worry: 25 ships, naïve ones, left\nthe harbour. 今天天气很好，走吧！"

# name -> (variant, arguments of its method)
VOICES = {
    "speaker": ("custom_voice", dict(speaker="Eric", language="Chinese")),
    "speaker, instruction": ("custom_voice", dict(speaker="Ryan", instruct="Slowly.")),
    "design": ("voice_design", dict(instruct="A calm voice.", language="English")),
    "x-vector": ("base", dict(x_vector_only_mode=True)),
    "clone": ("base", dict(ref_text=TRANSCRIPT, language="English")),
}
LAYOUTS = [(name, whole) for name in VOICES for whole in (False, True)]


class Models:
    """The models by variant; of one size, so that they share their programs."""

    def __init__(self, checkpoint):
        self.checkpoint = checkpoint

    @functools.cache  # noqa: B019 (lives as long as the tests)
    def get(self, variant: str, eos_gain: float = 1.0) -> Qwen3TTSModel:
        path = self.checkpoint(variant, "1.7B", eos_gain=eos_gain)
        tts = Qwen3TTSModel.from_pretrained(path)
        talker = tts.language_model.talker
        tables = dict(language_ids=(), speaker_ids=(), speaker_dialects=())
        talker.config = dataclasses.replace(talker.config, **tables)
        return tts

    @functools.cache  # noqa: B019
    def request(self, name: str) -> dict:
        """The arguments of a voice; its recording analysed once."""
        variant, request = VOICES[name]
        if variant != "base":
            return request
        analysis = {k: v for k, v in request.items() if k != "language"}
        item = self.get(variant).create_voice_clone_prompt(RECORDING, **analysis)
        language = request.get("language")
        return dict(voice_clone_prompt=item, language=language)

    @functools.cache  # noqa: B019
    def offline(self, name: str, whole: bool, text: str = TEXT, **options):
        """(wave, codes) of the method that makes whole utterances."""
        variant, _ = VOICES[name]
        tts = self.get(variant)
        make = {
            "base": tts.generate_voice_clone,
            "custom_voice": tts.generate_custom_voice,
            "voice_design": tts.generate_voice_design,
        }[variant]
        waves, _, codes = make(
            text,
            non_streaming_mode=whole,
            return_codes=True,
            **self.request(name),
            **(OPTIONS | options),
        )
        return waves[0], codes[0]

    def open(self, name: str, whole: bool, **options) -> session.StreamingSession:
        tts = self.get(VOICES[name][0])
        voice = tts.voice(non_streaming_mode=whole, **self.request(name))
        return session.StreamingSession(tts, voice, **(OPTIONS | options))


def assert_same(chunks, codes, offline) -> None:
    """Equal codes, and waves within 1e-5: float32 sums over chunks of other lengths."""
    wave, expected = offline
    np.testing.assert_array_equal(codes, expected)
    joined = np.concatenate(chunks)
    assert joined.dtype == np.float32
    np.testing.assert_allclose(joined, wave, rtol=0, atol=1e-5)
