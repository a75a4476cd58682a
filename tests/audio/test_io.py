"""audio/io.py: every way in, every refusal, the WAV that comes out.

golden/log_mel.npz holds, beside what test_mel.py takes of it, a 16 kHz signal resampled
by librosa 0.11.
"""

import base64
import http.server
import math
import os
import pathlib
import struct
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile

from qwen3tts_jax.audio import download
from qwen3tts_jax.audio import io as audio_io

HERE = pathlib.Path(__file__).parents[1]
PCM_STEP = 1 / 2**15


@pytest.fixture(autouse=True)
def strict_ranks():
    with jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture(scope="module")
def golden():
    with np.load(HERE / "golden" / "log_mel.npz") as arrays:
        return dict(arrays)


@pytest.fixture
def wave():
    return (0.3 * np.sin(np.arange(2400) * 0.1)).astype(np.float32)


def as_bytes(tmp_path, wave, rate=24_000, name="wave.wav", **options):
    soundfile.write(tmp_path / name, wave, rate, **options)
    return (tmp_path / name).read_bytes()


# Ways in: files and arrays.


@pytest.mark.parametrize("ending", ["wav", "flac", "ogg", "mp3"])
def test_reads_file_formats(tmp_path, wave, ending):
    path = tmp_path / f"wave.{ending}"
    soundfile.write(path, wave, 24_000)
    for source in (path, str(path)):
        result, rate = audio_io.read(source)
        assert result.dtype == np.float32 and result.shape == wave.shape
        assert rate == 24_000 and type(rate) is int
        assert np.corrcoef(result, wave)[0, 1] > 0.99


def test_averages_channels_of_a_file_longer_than_a_block(tmp_path):
    samples = 2 * audio_io.BLOCK_SAMPLES + 5
    left = np.linspace(-0.5, 0.5, samples, dtype=np.float32)
    path = tmp_path / "stereo.wav"
    soundfile.write(path, np.stack([left, np.full_like(left, 0.25)], 1), 8000, "FLOAT")
    result, rate = audio_io.read(path)
    np.testing.assert_allclose(result, left / 2 + 0.125, atol=1e-7)
    assert rate == 8000
    assert audio_io.load(path).shape == (3 * samples,)


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        (np.array([0, 2**14, -(2**15)], np.int16), [0, 0.5, -1]),
        (np.array([0, 2**30, -(2**31)], np.int32), [0, 0.5, -1]),
        (np.array([128, 192, 0], np.uint8), [0, 0.5, -1]),
        (np.array([0, 0.5, -1.75], np.float64), [0, 0.5, -1.75]),  # kept beyond 1
        (np.array([0, 0.5, -1], np.float16), [0, 0.5, -1]),
        (jnp.array([0, 0.5, -1], jnp.bfloat16), [0, 0.5, -1]),
        (np.array([[0, 0], [1, 0], [-1, -1]], np.float32), [0, 0.5, -1]),
        (np.array([[0, 0], [2**15 - 1, 1], [0, 0]], np.int16), [0, 0.5, 0]),
    ],
)
def test_reads_arrays(samples, expected):
    result, rate = audio_io.read((samples, 16_000.0))
    np.testing.assert_array_equal(result, np.array(expected, np.float32))
    assert result.dtype == np.float32 and type(rate) is int and rate == 16_000


def refused(source, *words, error=ValueError, **options):
    """The refusal names each of `words`, what was expected, and a way out."""
    with pytest.raises(error) as caught:
        audio_io.read(source, **options)
    for word in ("got ", "expected ", "; ", *words):
        assert word in str(caught.value)


@pytest.mark.parametrize(
    "rate", [0, -1, math.nan, math.inf, 0.5, True, "8", None, 2**31]
)
def test_refuses_rates(rate):
    refused((np.ones(9, np.float32), rate), "sample rate", repr(rate))
    with pytest.raises(ValueError, match="sample rate"):
        audio_io.resample(np.ones(9, np.float32), 8000, rate)


def test_refuses_shapes_and_types():
    refused(np.ones(9), "ndarray", "(array, rate)")
    refused((np.ones(9),), "tuple of 1")
    refused((8000, np.ones(9)), "sample rate", "(array, 24000)")
    refused((np.float32(1), 8000), "[]", "[W]")
    refused((np.ones((1, 2, 3)), 8000), "[1, 2, 3]")
    refused((np.ones((2, 9)), 8000), "[2, 9]", "[W, C]")
    refused((np.ones(9, np.int64), 8000), "int64", "int16")
    refused((np.ones(9, np.complex64), 8000), "complex64")
    refused(b"RIFF", "bytes")


def test_refuses_empty_and_nonfinite(tmp_path, wave):
    refused((np.zeros(0), 8000), "0 samples")
    refused((np.zeros((0, 2)), 8000), "0 samples")
    for bad in (np.nan, np.inf, -np.inf):
        wave[[7, 9]] = bad
        refused((wave, 8000), "sample 7", str(bad))
        refused((np.stack([wave, wave], 1), 8000), "sample 7")
        soundfile.write(tmp_path / "bad.wav", wave, 8000, "FLOAT")
        refused(tmp_path / "bad.wav", "sample 7", "bad.wav")
    refused((np.full(3, 1e300), 8000), "inf at sample 0")  # no float32
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 8000)
    refused(tmp_path / "empty.wav", "0 samples", "empty.wav")


def test_refuses_what_is_too_long(tmp_path, wave):
    second = (np.zeros(10, np.float32), 10)
    assert audio_io.read(second, max_seconds=1)[0].shape == (10,)
    refused(second, "1.0 s", "at most 0.9 s", max_seconds=0.9)
    refused((np.zeros(3201, np.float32), 10), "320.1 s", "at most 320 s")
    assert audio_io.read((np.zeros(3201), 10), max_seconds=math.inf)[0].shape == (3201,)
    text = base64.b64encode(as_bytes(tmp_path, wave)).decode()
    refused(text, "0.1 s", max_seconds=0.05)


def test_refuses_three_hours_by_the_header_alone(tmp_path, monkeypatch):
    size, rate = 3 * 3600 * 8000, 8000  # 8-bit mono; the file is a hole after 44 bytes
    head = struct.pack("<4sI8sIHHIIHH4sI", b"RIFF", size + 36, b"WAVEfmt ", 16, 1, 1,
                       rate, rate, 1, 8, b"data", size)  # fmt: skip
    path = tmp_path / "long.wav"
    path.write_bytes(head)
    os.truncate(path, len(head) + size)
    monkeypatch.setattr(soundfile.SoundFile, "read", None)  # would fail if called
    refused(path, "10800.0 s", "at most 320 s", "long.wav")


def test_refuses_missing_and_broken_files(tmp_path, wave):
    missing = tmp_path / "missing.wav"
    for source in (missing, str(missing), "missing.wav", "", "a\0b", "C:/x.wav"):
        refused(source, repr(str(source)), error=FileNotFoundError)
    refused(tmp_path, tmp_path.name, error=FileNotFoundError)
    refused("x" * 301, "xxx...xxx", error=FileNotFoundError)  # no base64 by length
    for name, data in {
        "empty.wav": b"",
        "text.wav": b"hello" * 50,
        "bare.raw": b"\0" * 100,
        "half.flac": as_bytes(tmp_path, np.tile(wave, 9), name="whole.flac")[:9000],
        "half.mp3": as_bytes(tmp_path, np.tile(wave, 9), name="whole.mp3")[:2000],
    }.items():
        (tmp_path / name).write_bytes(data)
        refused(tmp_path / name, name)


# Ways in: base64.


def test_reads_base64(tmp_path):
    pcm = np.full(600, -1, np.int16)  # bytes of 0xff are "/" in base64
    data = as_bytes(tmp_path, pcm)
    text = base64.b64encode(data).decode()
    assert "////" in text
    wrapped = base64.encodebytes(data).decode()
    escaped = text.replace("/", "%2F")
    uris = [f"data:audio/wav;base64,{body}" for body in (text, wrapped, escaped)]
    for source in (text, wrapped, *uris):
        result, rate = audio_io.read(source)
        np.testing.assert_array_equal(result, np.full(600, -PCM_STEP, np.float32))
        assert rate == 24_000


def test_refuses_bad_base64(tmp_path, wave):
    text = base64.b64encode(as_bytes(tmp_path, wave)).decode()
    refused("data:audio/wav;base64," + text[:-1] + "?", "strict base64")
    refused("data:audio/wav;base64," + "!" + text, "strict base64")
    refused("data:audio/wav," + text, ";base64,")
    refused("data:", ";base64,")
    refused(base64.b64encode(b"hello" * 99).decode(), "base64 text", "decoded")
    refused(text[:-1] + "?", error=FileNotFoundError)
    refused("A" * 256, error=FileNotFoundError)  # short: a mistyped path


def test_an_existing_file_wins_over_base64(tmp_path, wave, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "A" * 128 + "/" + "B" * 131  # 260 characters, valid base64
    os.mkdir("A" * 128)
    soundfile.write(name, wave, 24_000, format="WAV")
    assert audio_io.read(name)[0].shape == wave.shape


# Ways in: http.


class Handler(http.server.BaseHTTPRequestHandler):
    body = b""
    stop = threading.Event()

    def do_GET(self):
        kind, _, rest = self.path[1:].partition("?")
        getattr(self, f"send_{kind}")(rest)

    def start(self, status=200, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def send_ok(self, _):
        self.start(Content_Length=str(len(self.body)))
        self.wfile.write(self.body)

    def send_unsized(self, _):
        self.start()
        self.wfile.write(self.body)

    def send_short(self, _):
        self.start(Content_Length=str(len(self.body) + 1))
        self.wfile.write(self.body)

    def send_missing(self, _):
        self.start(404)

    def send_redirect(self, target):
        self.start(302, Location=target)

    def send_drip(self, _):
        self.start()
        self.drip(b"x")

    def send_drip_headers(self, _):
        self.wfile.write(b"HTTP/1.0 200 OK\r\n")
        self.drip(b"X: y\r\n")

    def drip(self, part):
        while not self.stop.wait(0.05):
            self.wfile.write(part)

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    def handle_error(self, *_):
        """The client left: what the tests of limits are about."""


@pytest.fixture
def site(tmp_path, wave, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(Handler, "body", as_bytes(tmp_path, wave))
    monkeypatch.setattr(Handler, "stop", threading.Event())
    with Server(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        Handler.stop.set()
        server.shutdown()


@pytest.mark.parametrize("page", ["ok", "unsized", "redirect?/ok", "redirect?ok"])
def test_reads_addresses(site, wave, page):
    for url in (site + page, site.replace("http", "HTTP") + page):
        result, rate = audio_io.read(url)
        np.testing.assert_allclose(result, wave, atol=PCM_STEP)
        assert rate == 24_000


def test_refuses_big_answers(site, monkeypatch):
    monkeypatch.setattr(download, "URL_MAX_BYTES", len(Handler.body))
    assert audio_io.read(site + "unsized")
    monkeypatch.setattr(download, "URL_MAX_BYTES", len(Handler.body) - 1)
    for page in ("ok", "unsized"):
        refused(site + page, "(more than 0.004843 MB)")


@pytest.mark.parametrize("page", ["drip", "drip_headers"])
def test_refuses_slow_answers(site, monkeypatch, page):
    monkeypatch.setattr(download, "URL_SECONDS", 0.3)  # six drips, each in good time
    start = time.monotonic()
    refused(site + page, "(out of time)", "within 0.3 s")
    assert time.monotonic() - start < 2


@pytest.mark.parametrize(
    ("page", "reason"),
    [
        ("missing", "404"),
        ("short", "of 4845 bytes"),
        ("redirect?/redirect?/missing", "404"),
        ("redirect?file:///etc/hostname", "scheme 'file'"),
        ("redirect?ftp://127.0.0.1/x.wav", "scheme 'ftp'"),
        ("redirect?data:audio/wav;base64,AAAA", "scheme 'data'"),
        ("drip_no_such_page", "failed"),
    ],
)
def test_refuses_answers(site, page, reason):
    refused(site + page, reason)


def test_refuses_endless_redirects(site, monkeypatch):
    def send_loop(self, _):
        self.send_redirect("loop")

    monkeypatch.setattr(Handler, "send_loop", send_loop, raising=False)
    refused(site + "loop", "redirected 6 times")


@pytest.mark.parametrize(
    "url",
    ["file:///etc/hostname", "FILE:/etc/hostname", "ftp://127.0.0.1/x", "s3://b/x.wav"],
)
def test_refuses_other_schemes(url):
    refused(url, f"scheme '{url.partition(':')[0].lower()}'", "http(s)")


@pytest.mark.parametrize("url", ["http://", "http://[x", "http://127.0.0.1:1/a b"])
def test_refuses_bad_addresses(url, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    refused(url, repr(url), "check the address")


# Resampling.


def test_resample_equals_librosa(golden):
    wave = golden["pcm_16k"].astype(np.float32) / 2**15
    result = audio_io.resample(wave, 16_000, 24_000)
    # The same library with the same setting; another build may round otherwise.
    np.testing.assert_allclose(result, golden["resampled"], atol=1e-6)


@pytest.mark.parametrize("rate", [7, 8000, 11_025, 44_100, 48_000, 10**9])
@pytest.mark.parametrize("samples", [1, 2, 147, 1000])
def test_resample_length_is_exact(rate, samples):
    result = audio_io.resample(np.ones(samples, np.float32), rate, 24_000)
    assert result.shape == (math.ceil(samples * 24_000 / rate - 1e-9),)
    assert result.dtype == np.float32


def test_load_resamples_to_the_rate_asked_for():
    tone = np.sin(2 * np.pi * 440 * np.arange(8000) / 8000)
    for rate in (16_000, audio_io.SAMPLE_RATE):
        result = audio_io.load((tone, 8000), rate=rate)
        expected = np.sin(2 * np.pi * 440 * np.arange(rate) / rate)
        np.testing.assert_allclose(result[999:-999], expected[999:-999], atol=1e-3)
    np.testing.assert_array_equal(
        audio_io.load((tone, 24_000)), tone.astype(np.float32)
    )


def test_resample_refuses_other_waves():
    for wave in (np.ones((9, 2)), np.ones(9, np.int16)):
        with pytest.raises(ValueError, match=r"expected float \[W\]; "):
            audio_io.resample(wave, 8000, 24_000)


def test_recording_is_as_its_readme_says():
    wave, rate = audio_io.read(HERE / "recordings" / "allison_en.flac")
    assert rate == 16_000 and wave.shape == (85_792,)
    assert 0.5 < np.abs(wave).max() < 1
    assert audio_io.load(HERE / "recordings" / "allison_en.flac").shape == (128_688,)


# Writing.


def test_writes_what_it_reads(tmp_path, wave):
    path = tmp_path / "out.wav"
    path.write_bytes(b"old")
    audio_io.write_wav(path, jnp.asarray(wave))
    result, rate = audio_io.read(path)
    assert rate == audio_io.SAMPLE_RATE and soundfile.info(path).subtype == "PCM_16"
    np.testing.assert_allclose(result, wave, atol=PCM_STEP)
    audio_io.write_wav(str(path), 4 * wave, 16_000, subtype="FLOAT")
    result, rate = audio_io.read(path)
    assert rate == 16_000
    np.testing.assert_array_equal(result, 4 * wave)
    audio_io.write_wav(path, 4 * wave)
    clipped = np.clip(4 * wave, -1, 1)  # not wrapped around
    np.testing.assert_allclose(audio_io.read(path)[0], clipped, atol=PCM_STEP)
    plain = tmp_path / "plain"
    plain.touch()
    assert path.stat().st_mode == plain.stat().st_mode
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.wav", "plain"]


@pytest.mark.parametrize("failing", ["soundfile.write", "os.replace"])
def test_failed_writing_leaves_the_old_file(tmp_path, wave, monkeypatch, failing):
    path = tmp_path / "out.wav"
    path.write_bytes(b"old")

    def fail(file, *_, **__):
        if failing == "soundfile.write":
            file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(failing, fail)
    with pytest.raises(OSError, match="disk full"):
        audio_io.write_wav(path, wave)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["out.wav"]


def test_write_refusals(tmp_path, wave):
    path = tmp_path / "out.wav"
    with pytest.raises(FileNotFoundError, match="expected a folder .*none'; create"):
        audio_io.write_wav(tmp_path / "none" / "out.wav", wave)
    with pytest.raises(ValueError, match="got the folder"):
        audio_io.write_wav(tmp_path, wave)
    with pytest.raises(ValueError, match="got subtype 'MP3', expected .*PCM_16"):
        audio_io.write_wav(path, wave, subtype="MP3")
    with pytest.raises(ValueError, match="sample rate of 0"):
        audio_io.write_wav(path, wave, 0)
    for bad in (wave[None], wave.astype(np.int16), wave.astype(np.complex64)):
        with pytest.raises(ValueError, match=r"expected float \[W\]"):
            audio_io.write_wav(path, bad)
    with pytest.raises(ValueError, match="0 samples"):
        audio_io.write_wav(path, wave[:0])
    wave[5] = np.nan
    with pytest.raises(ValueError, match="nan at sample 5"):
        audio_io.write_wav(path, wave)
    assert not list(tmp_path.iterdir())
