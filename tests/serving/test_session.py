"""Text in, sound out: equal to offline synthesis however text and frames are cut."""

import dataclasses
import gc
import threading
import time

import jax
import numpy as np
import pytest
import voices

from qwen3tts_jax.serving import engine, session

USUAL = (1, 2, 4, 8)


def pieces(text: str, size: str) -> list[str]:
    """A text whole, by word (each with the space before it), or by character."""
    if size == "whole":
        return [text]
    if size == "characters":
        return list(text)
    words = text.split(" ")
    return words[:1] + [f" {word}" for word in words[1:]]


# ------------------------------------------------------------------ stream = offline


@pytest.mark.parametrize(("name", "whole"), voices.LAYOUTS)
def test_a_stream_is_the_offline_utterance(models, name, whole):
    ways = [(s, "whole") for s in ((1,), (3,), (7,), USUAL)]
    ways += [(USUAL, "words"), ((3,), "characters")]
    for schedule, size in ways:
        opened = models.open(name, whole, schedule=schedule)
        for piece in pieces(voices.TEXT, size):
            opened.push_text(piece)
        opened.end_text()
        chunks = list(opened)
        voices.assert_same(chunks, opened.codes, models.offline(name, whole))
        assert opened.stop_reason == "max_frames"
        frames = [len(chunk) / 1920 for chunk in chunks]
        expected, rest = [], voices.FRAMES
        while rest:
            wanted = schedule[min(len(expected), len(schedule) - 1)]
            expected.append(min(wanted, rest))
            rest -= expected[-1]
        assert frames == expected


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("name", ["speaker", "clone"])
def test_text_that_comes_while_it_is_spoken(models, name, whole):
    """Pulled piece by piece from an iterable, as from a language model."""
    tts = models.get(voices.VOICES[name][0])
    stream = tts.stream_voice_clone if name == "clone" else tts.stream_custom_voice
    chunks = stream(
        iter(pieces(voices.TEXT, "characters")),
        non_streaming_mode=whole,
        **models.request(name),
        **voices.OPTIONS,
    )
    wave, _ = models.offline(name, whole)
    np.testing.assert_allclose(np.concatenate(list(chunks)), wave, rtol=0, atol=1e-5)


def test_sound_begins_with_the_first_words(models):
    """And a frame that needs text waits for it, in another thread's time."""
    opened = models.open("speaker", False)
    words, chunks = pieces(voices.TEXT, "words"), []
    opened.push_text(words[0])
    opened.push_text(words[1])
    chunks.append(opened.read())  # before the rest is known
    assert len(chunks[0]) == 1920

    def push():
        for word in words[2:]:
            time.sleep(0.02)
            opened.push_text(word)
        opened.end_text()

    thread = threading.Thread(target=push)
    thread.start()
    chunks += list(opened)
    thread.join()
    voices.assert_same(chunks, opened.codes, models.offline("speaker", False))


def test_the_guard_and_the_end_token_stop_a_stream_as_offline(models):
    """Without max_new_tokens; a model whose end token is likely."""
    tts = models.get("custom_voice", eos_gain=8.0)
    request = dict(speaker="Ryan", non_streaming_mode=False)
    voice, reasons = tts.voice(**request), set()
    for seed in range(3):
        [offline] = tts.speak(
            tts.custom_voice_utterances(["Hello there."], **request), seed=seed
        )
        opened = session.StreamingSession(tts, voice, seed=seed)
        opened.push_text("Hello there.")
        opened.end_text()
        chunks = list(opened)
        voices.assert_same(chunks, opened.codes, (offline.wave, offline.codes))
        assert opened.stop_reason == offline.stop_reason
        reasons.add(opened.stop_reason)
    assert "eos" in reasons


def test_sessions_side_by_side(models):
    """Each with an engine of its own, read in turns."""
    names = ["speaker", "design", "clone"]
    opened = [models.open(name, True) for name in names]
    chunks = {name: [] for name in names}
    for one in opened:
        one.push_text(voices.TEXT)
        one.end_text()
    for _ in range(6):
        for name, one in zip(names, opened):
            chunk = one.read()
            chunks[name] += [] if chunk is None else [chunk]
    for name, one in zip(names, opened):
        voices.assert_same(chunks[name], one.codes, models.offline(name, True))


def test_a_reference_is_decoded_once(models, monkeypatch):
    tts = models.get("base")
    item = models.request("clone")["voice_clone_prompt"]
    calls, state_after = [], tts.speech_tokenizer.state_after

    def counted(*args):
        calls.append(args)
        return state_after(*args)

    monkeypatch.setattr(tts.speech_tokenizer, "state_after", counted)
    for _ in range(2):
        list(tts.stream_voice_clone("Hi.", voice_clone_prompt=item, **voices.OPTIONS))
    assert not calls
    # somebody puts other codes into the item: no old state is used for them
    changed = dataclasses.replace(item[0], ref_code=item[0].ref_code[:-1])
    list(tts.stream_voice_clone("Hi.", voice_clone_prompt=changed, **voices.OPTIONS))
    assert len(calls) == 1


# ------------------------------------------------------------------------ mistakes


def test_text_that_does_not_come_ends_the_session(models):
    opened = models.open("speaker", False, text_timeout=0.2)
    start = time.monotonic()
    assert list(opened) == []
    assert time.monotonic() - start < 5
    assert opened.stop_reason == "text_timeout" and len(opened.codes) == 0
    with pytest.raises(ValueError, match="no text came in time"):
        opened.push_text("Hello.")


@pytest.mark.parametrize("whole", [False, True])
def test_what_came_before_a_timeout_is_spoken(models, whole):
    text = "Hello there, how are"
    opened = models.open("speaker", whole, text_timeout=0.3)
    opened.push_text(text)  # "are" may go on: it is held back until the timeout
    chunks = list(opened)
    offline = models.offline("speaker", whole, text=text)
    voices.assert_same(chunks, opened.codes, offline)
    assert opened.stop_reason == "text_timeout"


def test_a_slow_device_is_no_lack_of_text(models, monkeypatch):
    """What takes long on the device, such as compiling, does not end the text."""
    run, opened = engine._run_group, models.open("speaker", False, text_timeout=0.3)

    def slow(*args):
        time.sleep(0.5)
        return run(*args)

    monkeypatch.setattr(engine, "_run_group", slow)
    words, chunks = pieces(voices.TEXT, "words"), []
    for word in words[:3]:
        opened.push_text(word)
    chunks.append(opened.read())
    for word in words[3:]:
        opened.push_text(word)
    opened.end_text()
    chunks += list(opened)
    voices.assert_same(chunks, opened.codes, models.offline("speaker", False))
    assert opened.stop_reason == "max_frames"


def test_text_that_never_ends_is_stopped_by_the_frames_allowed(models):
    opened, count = models.open("speaker", False), 0

    def words():
        nonlocal count
        while True:
            count += 1
            yield "more "

    chunks = list(opened.speak(words()))
    assert len(np.concatenate(chunks)) == voices.FRAMES * 1920
    assert opened.stop_reason == "max_frames" and count < 10 * voices.FRAMES


def test_more_text_than_any_session_can_speak(models):
    opened = models.open("speaker", False)
    with pytest.raises(ValueError, match="more than 32768 tokens"):
        opened.push_text("x" * 40000)
    assert list(opened) == []
    opened = models.open("speaker", True)
    with pytest.raises(ValueError, match="more than 32768 tokens"):
        for _ in range(9):
            opened.push_text("more " * 4000)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(schedule=()), "schedule"),
        (dict(schedule=(0, 1)), "schedule"),
        (dict(text_timeout=0), "text_timeout"),
        (dict(top_p=2.0), "top_p"),
    ],
)
def test_bad_options(models, options, words):
    with pytest.raises(ValueError, match=words):
        models.open("speaker", False, **options)
    with pytest.raises(TypeError, match="no_such_option"):
        models.open("speaker", False, no_such_option=1)


def test_bad_requests(models):
    custom, base = models.get("custom_voice"), models.get("base")
    for request, words in (
        (dict(speaker="nobody"), "nobody"),
        (dict(), "speaker"),
        (dict(speaker="ryan", language="Klingon"), "Klingon"),
        (dict(speaker="ryan", ref_audio="x.wav"), "cannot use"),
    ):
        with pytest.raises(ValueError, match=words):
            custom.voice(**request)
    with pytest.raises(ValueError, match="no voice"):
        base.voice()
    with pytest.raises(ValueError, match="stream_voice_clone"):
        custom.stream_voice_clone("Hello.", ref_audio=voices.RECORDING)
    with pytest.raises(ValueError, match="at least one word"):
        custom.stream_custom_voice(" \n", speaker="ryan")


def test_text_after_the_end_and_no_text_at_all(models):
    opened = models.open("speaker", False)
    with pytest.raises(ValueError, match="at least one word"):
        opened.end_text()
    opened.push_text(" \n ")
    with pytest.raises(ValueError, match="at least one word"):
        opened.end_text()
    opened.push_text("Hello.")
    opened.end_text()
    for call in (opened.end_text, lambda: opened.push_text("More.")):
        with pytest.raises(ValueError, match="open a new one"):
            call()
    opened.close()
    assert opened.stop_reason == "closed" and opened.read() is None
    closed = models.open("speaker", False)
    closed.close()
    with pytest.raises(ValueError, match="it is closed"):
        closed.push_text("More.")


def test_text_after_the_last_frame_is_not_spoken(models):
    """The model may end before its text does; that is no mistake of who pushes."""
    opened = models.open("speaker", False, max_new_tokens=4)
    opened.push_text(voices.TEXT)
    chunks = [opened.read(), opened.read()]
    assert opened.read() is None and opened.stop_reason == "max_frames"
    assert sum(map(len, chunks)) == 3 * 1920
    opened.push_text(" More of it.")
    opened.end_text()
    assert opened.read() is None and len(opened.codes) == 3
    with pytest.raises(ValueError, match="its text is ended"):
        opened.push_text("More.")


# ------------------------------------------------------------------------ no leaks


def test_a_hundred_sessions_leave_nothing_behind(models):
    """Read to the end, dropped half way, or never read; closed or not."""

    def run(i: int) -> None:
        opened = models.open("speaker", False, seed=i)
        opened.push_text(voices.TEXT)
        if i % 2:
            opened.end_text()
        if i % 3:
            opened.read()
        if i % 5 == 0:
            opened.close()

    def left() -> tuple[int, int]:
        gc.collect()
        arrays = jax.live_arrays()
        return len(arrays), sum(a.nbytes for a in arrays)

    for i in range(6):
        run(i)
    before = left()
    for i in range(100):
        run(i)
    assert left() == before


def test_a_reader_that_stops_early_gives_its_slot_back(models):
    opened = models.open("speaker", False)
    chunks = opened.speak(voices.TEXT)
    next(chunks)
    chunks.close()
    assert opened.stop_reason == "closed"
    assert not any(opened.engine._slots) and opened.engine._state is None
