"""Waves to codes in batches of few shapes: each clip gets the codes it has alone.

A clip's length alone decides which program encodes it: one for each bucket of frames,
with a fixed number of rows.  The encoder ignores what lies beyond a row's own length,
and rows that are not filled are empty.  So no clip's codes depend on its neighbours,
and 14 programs encode any corpus.
"""

from collections.abc import Iterator

import jax
import numpy as np

from qwen3tts_jax import runtime, speech_tokenizer

MAX_ROWS = 64
IN_FLIGHT = 2  # batches that the accelerator has not given back yet


class Encoder:
    """Collects waves into batches and encodes them."""

    def __init__(self, directory: str, *, batch_frames: int):
        """directory: of a speech tokenizer, or of a checkpoint that holds one."""
        self.tokenizer = speech_tokenizer.Qwen3TTSTokenizer.from_pretrained(directory)
        self.batch_frames = batch_frames

    def bucket(self, wave: np.ndarray) -> int:
        """Frames of the program that encodes a wave."""
        frames = -(-len(wave) // self.tokenizer.config.samples_per_frame)
        return runtime.bucket(frames, speech_tokenizer.ENCODE_BUCKETS)

    def rows(self, bucket: int) -> int:
        """Rows of the program of so many frames."""
        return min(MAX_ROWS, max(1, self.batch_frames // bucket))

    def encode(self, waves: Iterator[tuple[int, np.ndarray]]) -> Iterator[tuple]:
        """(number, wave) in any order -> (numbers, waves, codes) of each batch.

        Args:
            waves: float32 [W] at 24 kHz.
        Returns:
            codes: list of uint16 [T, 16].  A batch is given back when IN_FLIGHT others
            have been started, so that the accelerator never waits for the host.
        """
        waiting: dict[int, list] = {}
        started: list[tuple] = []
        for number, wave in waves:
            bucket = self.bucket(wave)
            batch = waiting.setdefault(bucket, [])
            batch.append((number, wave))
            if len(batch) == self.rows(bucket):
                started.append(self._start(bucket, waiting.pop(bucket)))
            if len(started) > IN_FLIGHT:
                yield self._finish(*started.pop(0))
        for bucket, batch in sorted(waiting.items()):
            started.append(self._start(bucket, batch))
        for batch in started:
            yield self._finish(*batch)

    def _start(self, bucket: int, batch: list) -> tuple:
        config, rows = self.tokenizer.config, self.rows(bucket)
        wave = np.zeros((rows, bucket * config.samples_per_frame), np.float32)
        length = np.ones(rows, np.int32)
        for row, (_, samples) in enumerate(batch):
            wave[row, : len(samples)] = samples
            length[row] = len(samples)
        with runtime.exact():
            codes = _encode(self.tokenizer.encoder, wave, length, config.quantizers)
        return batch, codes

    def _finish(self, batch: list, codes: jax.Array) -> tuple:
        hop = self.tokenizer.config.samples_per_frame
        numbers, waves = zip(*batch)
        found = np.asarray(codes).astype(np.uint16)
        kept = [row[: -(-len(wave) // hop)] for row, wave in zip(found, waves)]
        return numbers, waves, kept


_encode = jax.jit(
    lambda encoder, wave, length, quantizers: encoder(wave, length, quantizers),
    static_argnums=3,
)
