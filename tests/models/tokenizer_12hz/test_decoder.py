"""Codes to waves, against the official decoder, run whole and run in its chunks."""

import inputs
import numpy as np
import parity

HOP = inputs.SAMPLES_PER_FRAME
# The official package decodes in chunks of 300 frames, each with 25 frames before it,
# fewer than its transformer hears: from the second chunk on it leaves its own decoder.
OFFICIAL_CHUNK = 300


def decode(golden, codes: list[np.ndarray]) -> list[np.ndarray]:
    waves, rate = golden.model.speech_tokenizer.decode(codes)
    assert rate == inputs.SAMPLE_RATE
    assert [len(w) for w in waves] == [HOP * len(c) for c in codes]
    return waves


@parity.over("decode")
def test_waves_equal_the_official_ones(golden):
    compared = []
    for i, codes in enumerate(inputs.decoder_codes(golden.seed)):
        key = f"decode/{i}"
        if f"{key}/unchunked/energy" in golden.arrays:
            key = f"{key}/unchunked"
        (wave,) = decode(golden, [codes])
        parity.assert_wave("wave", wave, golden.arrays, key)
        compared.append(key)
    longest = max(inputs.DECODED)
    assert longest > OFFICIAL_CHUNK and compared[-1].endswith("unchunked")


@parity.over("decode")
def test_official_chunks_are_equal_up_to_their_length(golden):
    i = inputs.DECODED.index(max(inputs.DECODED))
    note = golden.notes[f"decode/{i}/unchunked_differs"]
    assert note["first_sample"] >= OFFICIAL_CHUNK * HOP
    (wave,) = decode(golden, [inputs.decoder_codes(golden.seed)[i]])
    energy = golden.arrays[f"decode/{i}/energy"][:OFFICIAL_CHUNK]
    frames = wave[: OFFICIAL_CHUNK * HOP].reshape(-1, HOP)
    parity.assert_energy("wave of the first chunk", frames, energy)
    first = golden.arrays[f"decode/{i}/first"]
    parity.assert_close(
        "wave of the first chunk", wave[: len(first)], first, parity.WAVE_CLOSE
    )


@parity.over("decode")
def test_a_ragged_batch_gives_the_waves_of_its_rows(golden):
    all_codes = inputs.decoder_codes(golden.seed)
    rows = inputs.DECODED_TOGETHER
    waves = decode(golden, [all_codes[i] for i in rows])
    for i, wave in zip(rows, waves):
        parity.assert_wave("wave in a batch", wave, golden.arrays, f"decode/{i}")
