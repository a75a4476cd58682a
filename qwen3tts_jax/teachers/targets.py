"""What a codec's codebook 0 is taught: a teacher's states, one for each codec frame.

A clip is resampled to 16 kHz and heard in windows of at most 29.76 s that overlap by
5.76 s; of each overlap either window gives the half in which it has heard more, so that
every state has 2.88 s on both sides of it wherever the clip has them.  The 50 Hz states
are then pooled over the whole clip.

What is taught must be a matter of the sound: no codec knows where in a clip it is.
Whisper's states do depend on that.  The same speech after 1, 5 and 10 s of silence
gives states of this cosine (each channel's mean taken off, pooled; base, 25 recordings
in five languages):

    after the last norm           0.70  0.48  0.32
    ... before its scale, shift   0.89  0.85  0.77   "plain", the default
    after layer 5 of 6            0.91  0.83  0.73
    average of all                0.69  0.51  0.35

(The time is in a few channels, which the learnt scale makes large: "plain" divided by
each channel's deviation gives 0.95, 0.91, 0.82.)

Whisper was trained with silence up to 30 s.  Here a window is followed by 1 s of it and
more up to a multiple of 2 s, at a fifth of the cost for a clip of 4 s.  Cosine to what
30 s give: 0.990 (means taken off 0.984), with no silence at all 0.978 (0.963), with
another second 0.991 (0.985).
"""

import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Callable

import jax
import numpy as np

from qwen3tts_jax.audio import io as audio_io
from qwen3tts_jax.teachers import wavlm, whisper

KINDS = {"whisper": whisper, "wavlm": wavlm}
FRAME = 1920  # samples of 24 kHz in a codec frame
STEPS = 4  # states of 20 ms in it
STEP = 320  # samples of 16 kHz
LAST = 80  # samples that the last state of WavLM reaches beyond its step
WINDOW, EDGE = 372, 36  # codec frames; at a seam this much of a window is context only
BUCKET = 32_000  # samples: lengths are padded to multiples, one program for each
LONGEST = 480_000
POOL_KERNEL = 8  # states. Source: Mimi, arXiv 2410.00037, section 3.3.2


@dataclasses.dataclass(frozen=True, eq=False)
class Teacher:
    """A speech encoder and the layer of it that is taught.

    Attributes:
        name: kind, size, layer and weights, such as "whisper-512x6-plain-d01c3014881c".
        dim: D, width of the states.
        tail: samples of silence that it wants after a window.
        run: (wave float32 [1, W], length int32 [1]) -> float32 [1, T50, D], 16 kHz.
    """

    name: str
    dim: int
    tail: int
    run: Callable

    @classmethod
    def open(
        cls, kind: str, directory: pathlib.Path, layer: int | str | None = None
    ) -> "Teacher":
        """Load a teacher.

        Args:
            kind: "whisper" (a CTranslate2 directory) or "wavlm" (a Hugging Face one).
            directory: where its files are.
            layer: 0 (what enters the first layer) to the number of layers, or
                "average" of them all.  None: "plain" of Whisper, its last state before
                the scale and shift of its norm; the average of WavLM, as
                SpeechTokenizer takes it of HuBERT.
        Raises:
            FileNotFoundError, ValueError: see `whisper.load` and `wavlm.load`, or the
                kind or the layer is not as above.
        """
        if kind not in KINDS:
            raise ValueError(f"got teacher {kind!r}, expected {' or '.join(KINDS)}")
        part = KINDS[kind]
        config, module = part.load(directory)
        layer = config.default_layer if layer is None else layer
        config.check(layer)
        digest = _digest(pathlib.Path(directory) / part.FILE)
        run = jax.jit(functools.partial(part.hidden, layer=layer))
        return cls(
            name=f"{kind}-{config.dim}x{config.layers}-{layer}-{digest}",
            dim=config.dim,
            tail=part.TAIL,
            run=functools.partial(run, module),
        )

    def __call__(self, wave: np.ndarray) -> np.ndarray:
        """States for each frame of a clip.

        wave: float [W], 24 kHz, finite, W > 0, of any length.
        Result: float16 [ceil(W / 1920), D]; frame t is about samples 1920 t to
        1920 (t + 1), like frame t of the codec.
        Raises: ValueError for another wave.
        """
        wave = np.asarray(wave)
        if wave.ndim != 1 or not len(wave) or not np.isfinite(wave).all():
            raise ValueError(
                f"got a wave of shape {list(wave.shape)}, expected finite numbers [W], "
                "W > 0"
            )
        frames = -(-len(wave) // FRAME)
        wave = audio_io.resample(wave, audio_io.SAMPLE_RATE, whisper.RATE)
        wave = np.pad(wave, (0, frames * STEPS * STEP + LAST - len(wave)))
        parts = [
            self._window(wave, start, stop)[first:last]
            for start, stop, first, last in windows(frames)
        ]
        with np.errstate(over="ignore"):  # found just below
            states = pool(np.concatenate(parts)).astype(np.float16)
        if not np.isfinite(states).all():
            raise ValueError(
                f"the states of {self.name} do not fit into float16; choose another "
                "layer"
            )
        return states

    def _window(self, wave: np.ndarray, start: int, stop: int) -> np.ndarray:
        """Float32 [T50, D] of codec frames start to stop, heard alone."""
        first, last = (frame * STEPS * STEP for frame in (start, stop))
        part = wave[first : last + LAST]
        row = np.zeros((1, bucket(len(part) + self.tail)), np.float32)
        row[0, : len(part)] = part
        states = np.asarray(self.run(row, np.int32([len(part)])))[0]
        return states[: (stop - start) * STEPS]


def windows(frames: int) -> list[tuple[int, int, int, int]]:
    """(start, stop, first, last) of each window of a clip of so many codec frames.

    It hears frames start to stop; of its states those from `first` to `last` are used.
    """
    step = WINDOW - 2 * EDGE
    count = 1 + max(0, -(-(frames - WINDOW) // step))
    found = []
    for i in range(count):
        start, stop = i * step, min(i * step + WINDOW, frames)
        used = start + EDGE * (i > 0), stop - EDGE * (i + 1 < count)
        found.append((start, stop, *((frame - start) * STEPS for frame in used)))
    return found


def bucket(samples: int) -> int:
    """The length that so many samples of 16 kHz are padded to, at most 30 s."""
    return min(-(-samples // BUCKET) * BUCKET, LONGEST)


def pool(states: np.ndarray) -> np.ndarray:
    """Float32 [T, D] of states [4 T, D]: means of a frame's four and of 2 on each side.

    At the ends of the clip the mean is over the states that there are.
    """
    edge = (POOL_KERNEL - STEPS) // 2
    sums = np.cumsum(states, axis=0, dtype=np.float64)
    sums = np.concatenate([np.zeros_like(sums[:1]), sums])  # [4 T + 1, D]
    first = np.arange(0, len(states), STEPS)
    start, stop = first - edge, first + STEPS + edge
    start, stop = np.maximum(start, 0), np.minimum(stop, len(states))
    mean = (sums[stop] - sums[start]) / (stop - start)[:, None]
    return mean.astype(np.float32)


def _digest(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]
