"""Files that are whole, files that grow, pipes."""

import io
import wave

import numpy as np
import pytest
import soundfile

from qwen3tts_jax.audio import io as audio_io
from qwen3tts_jax.audio import writers

WAVE = np.float32([0, 0.5, -0.5, 1, -1, 1.5, 1 / 3, 1e-5])


def test_samples_are_those_of_write_wav(tmp_path):
    audio_io.write_wav(tmp_path / "a.wav", WAVE)
    expected, _ = soundfile.read(tmp_path / "a.wav", dtype="int16")
    np.testing.assert_array_equal(np.frombuffer(writers.pcm16(WAVE), "<i2"), expected)


def test_a_growing_file_is_valid_after_every_chunk(tmp_path):
    path, written = tmp_path / "a.wav", 0
    path.write_bytes(b"what was here before")
    with writers.open_sound(path, growing=True) as out:
        assert path.read_bytes() == b"what was here before"
        for chunk in (WAVE[:0], WAVE, WAVE[:3], np.tile(WAVE, 500)):
            out.write(chunk)
            written += len(chunk)
            with wave.open(str(path)) as file:
                assert file.getparams()[:4] == (1, 2, audio_io.SAMPLE_RATE, written)
                assert len(file.readframes(10**6)) == 2 * written
    assert path.stat().st_size == 44 + 2 * written


def test_a_growing_file_keeps_what_came_before_an_error(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        with writers.open_sound(tmp_path / "a.wav", growing=True) as out:
            out.write(WAVE)
            raise KeyboardInterrupt
    assert len(soundfile.read(tmp_path / "a.wav")[0]) == len(WAVE)


def test_a_growing_file_is_not_touched_before_its_first_chunk(tmp_path):
    with pytest.raises(ValueError):
        with writers.open_sound(tmp_path / "a.wav", growing=True):
            raise ValueError
    assert list(tmp_path.iterdir()) == []


def test_a_whole_file_appears_at_the_end_or_never(tmp_path):
    path = tmp_path / "a.wav"
    with writers.open_sound(path, growing=False) as out:
        out.write(WAVE)
        assert list(tmp_path.iterdir()) == []
        out.write(WAVE)
    assert len(soundfile.read(path)[0]) == 2 * len(WAVE)
    with pytest.raises(KeyboardInterrupt):
        with writers.open_sound(tmp_path / "b.wav", growing=False) as out:
            out.write(WAVE)
            raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == [path]


def test_a_pipe_gets_samples_alone_and_stays_open():
    file = io.BytesIO()
    with writers.RawPipe(file) as out:
        out.write(WAVE)
        out.write(WAVE[:3])
    assert file.getvalue() == writers.pcm16(np.concatenate([WAVE, WAVE[:3]]))


def test_npy_files_are_whole_or_not_there(tmp_path, monkeypatch):
    writers.write_npy(tmp_path / "codes", WAVE)
    np.testing.assert_array_equal(np.load(tmp_path / "codes"), WAVE)
    monkeypatch.setattr(np, "save", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        writers.write_npy(tmp_path / "more", WAVE)
    assert [p.name for p in tmp_path.iterdir()] == ["codes"]


def test_places_that_cannot_be_written(tmp_path):
    good = tmp_path / "a.wav"
    writers.check(good, None, tmp_path / "b.npy")
    writers.check(type(good)("-"), None)
    for outs, words in (
        ((tmp_path,), "expected a file"),
        ((tmp_path / "no" / "a.wav",), "folder to write to"),
        ((good, good), "twice"),
    ):
        with pytest.raises(ValueError, match=words):
            writers.check(*outs)
