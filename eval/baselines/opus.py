"""Opus at its lowest bit rate, by PyAV's libopus (extra eval, with faster-whisper)."""

import io

import av
import numpy as np

from qwen3tts_jax.audio import io as audio_io

BIT_RATE = 6000  # bits a second: the lowest that RFC 6716, section 2.1.1, offers
# Constant rate, so that the rate is what it says; tuned for speech; frames of 20 ms.
OPTIONS = dict(vbr="off", application="voip", frame_duration="20")


def reconstruct(wave: np.ndarray, bit_rate: int = BIT_RATE) -> tuple[np.ndarray, int]:
    """Encode and decode float32 [W], 24 kHz.

    Returns: (float32 [W], bits of all packets, without their container).
    """
    file = io.BytesIO()
    bits = _encode(wave, file, bit_rate)
    file.seek(0)
    decoded = _decode(file)[: len(wave)]
    return np.pad(decoded, (0, len(wave) - len(decoded))), bits


def _encode(wave: np.ndarray, file: io.BytesIO, bit_rate: int) -> int:
    samples = np.clip(np.round(wave * 2**15), -(2**15), 2**15 - 1).astype(np.int16)
    frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
    frame.sample_rate = audio_io.SAMPLE_RATE
    bits = 0
    with av.open(file, "w", format="ogg") as out:
        stream = out.add_stream(
            "libopus", rate=audio_io.SAMPLE_RATE, layout="mono", options=OPTIONS
        )
        stream.bit_rate = bit_rate
        for packet in (*stream.encode(frame), *stream.encode(None)):
            bits += 8 * packet.size
            out.mux(packet)
    return bits


def _decode(file: io.BytesIO) -> np.ndarray:
    """The decoder gives 48 kHz; the encoder's delay is cut off by the container."""
    with av.open(file) as stream:
        resampler = av.AudioResampler("flt", "mono", audio_io.SAMPLE_RATE)
        frames = [
            part.to_ndarray()[0]
            for frame in (*stream.decode(audio=0), None)
            for part in resampler.resample(frame)
        ]
    return np.concatenate(frames).astype(np.float32)
