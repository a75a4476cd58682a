"""Clips from texts with a fake voice: levels, turns of languages, going on."""

import itertools

import numpy as np
import pytest
import soundfile

from data.small_family import reading
from data.small_family import reading_plan as plan

RATE = 24_000
HOURS = 0.01  # 36 s


def voice(seconds: float = 1.0):
    """text, voice -> a tone between silences; and the list of texts it has read."""
    said = []

    def speak(text: str, name: str) -> np.ndarray:
        said.append(text)
        at = np.arange(int(seconds * RATE)) / RATE
        silence = np.zeros(RATE, np.float32)
        tone = 0.2 * np.sin(2 * np.pi * 200 * at).astype(np.float32)
        return np.concatenate([silence, tone, silence])

    return speak, said


def readings(number: int = 60) -> dict[str, list[plan.Reading]]:
    return {
        language: [
            plan.Reading(
                id=f"{language}/{names[0]}/{i}",
                language=language,
                voice=names[0],
                source="wordnet",
                kind="sentence",
                text=f"{language} {i}",
            )
            for i in range(number)
        ]
        for language, names in plan.VOICES.items()
    }


def clips(folder) -> dict[str, bytes]:
    found = sorted(folder.rglob("*.flac"))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def test_a_clip_is_trimmed_and_has_the_corpus_level(tmp_path):
    speak, _ = voice()
    wave = reading.finish(speak("", ""))
    assert 1.0 <= len(wave) / RATE <= 1.25
    assert np.abs(wave).max() == pytest.approx(reading.PEAK, rel=1e-3)
    reading.write(tmp_path / "a.flac", wave)
    info = soundfile.info(tmp_path / "a.flac")
    assert (info.samplerate, info.channels, info.subtype) == (RATE, 1, "PCM_16")


@pytest.mark.parametrize("bad", [0.0, np.nan])
def test_silence_is_no_clip(bad):
    with pytest.raises(ValueError, match="expected speech"):
        reading.finish(np.full(RATE, bad, np.float32))


def test_languages_take_turns_by_their_goals():
    goals = dict(en=30.0, zh=10.0)
    found = {code: readings()[code] for code in goals}
    order = [one.language for one in reading.queue(found, goals, lambda one: 1.0)]
    assert order.count("en") == 30 and order.count("zh") == 10
    half = order[: len(order) // 2]  # half of the corpus holds half of either
    assert abs(half.count("zh") - 5) <= 1


def test_a_language_without_texts_does_not_stop_the_others():
    found = dict(en=readings(3)["en"], zh=[])
    order = list(reading.queue(found, dict(en=30.0, zh=10.0), lambda one: 1.0))
    assert [one.text for one in order] == ["en 0", "en 1", "en 2"]


def test_a_killed_run_goes_on_and_makes_the_same(tmp_path):
    plan.save(readings(), tmp_path / "whole")
    plan.save(readings(), tmp_path / "killed")
    speak, said = voice()
    made = reading.run(tmp_path / "whole", HOURS, speak)
    assert made == len(said) > len(plan.VOICES)

    calls = itertools.count()

    def dies(text: str, name: str) -> np.ndarray:
        if next(calls) == 7:
            raise KeyboardInterrupt
        return speak(text, name)

    with pytest.raises(KeyboardInterrupt):
        reading.run(tmp_path / "killed", HOURS, dies)
    assert len(clips(tmp_path / "killed")) == 7
    assert reading.run(tmp_path / "killed", HOURS, speak) == made - 7
    assert clips(tmp_path / "killed") == clips(tmp_path / "whole")
    assert reading.run(tmp_path / "killed", HOURS, speak) == 0


def test_it_ends_at_its_goal(tmp_path):
    plan.save(readings(), tmp_path)
    reading.run(tmp_path, HOURS, voice()[0])
    total = sum(reading.seconds(path) for path in tmp_path.rglob("*.flac"))
    longest = 1.3 * len(plan.VOICES)  # each language may pass its goal by a clip
    assert 3600 * HOURS <= total <= 3600 * HOURS + longest


def test_workers_share_the_texts(tmp_path):
    plan.save(readings(), tmp_path)
    said = []
    for worker in range(2):
        speak, heard = voice()
        reading.run(tmp_path, HOURS, speak, worker=worker, workers=2)
        said.append(set(heard))
    assert said[0].isdisjoint(said[1])
    assert len(said[0] | said[1]) == len(clips(tmp_path))


def test_a_text_that_cannot_be_read_is_passed_over(tmp_path):
    plan.save(readings(), tmp_path)
    speak, _ = voice()

    def chokes(text: str, name: str) -> np.ndarray:
        if text == "en 0":
            raise ValueError("too long")
        return speak(text, name)

    told = []
    reading.run(tmp_path, HOURS, chokes, say=told.append)
    assert told[0] == "en/af_heart/0: too long"
    assert "audio/en/af_heart/0.flac" not in clips(tmp_path)
    assert "audio/en/af_heart/1.flac" in clips(tmp_path)
