"""Speaker embeddings from waves, against the official front end and ECAPA-TDNN."""

import inputs
import make
import parity
import pytest
import soundfile


def embed(golden, wave, rate: int):
    (item,) = golden.model.create_voice_clone_prompt(
        (wave, rate), x_vector_only_mode=True
    )
    assert item.ref_code is None and item.x_vector_only_mode and not item.icl_mode
    return item.ref_spk_embedding


@parity.over("speaker")
def test_embeddings_of_any_length(golden):
    for i, wave in enumerate(inputs.speaker_waves(golden.seed)):
        theirs = golden.arrays[f"speaker/embedding_{i}"]
        ours = embed(golden, wave, inputs.SAMPLE_RATE)
        parity.assert_close("speaker embedding", ours, theirs, parity.CLOSE)


@parity.over("speaker")
def test_embedding_of_a_human_voice(golden):
    wave, rate = soundfile.read(make.RECORDING, dtype="float32")
    wave = inputs.resample(wave, rate)[: 3 * inputs.SAMPLE_RATE]
    theirs = golden.arrays["recording/plain/3s/speaker_embedding"]
    ours = embed(golden, wave, inputs.SAMPLE_RATE)
    parity.assert_close("speaker embedding", ours, theirs, parity.CLOSE)


@parity.over("speaker")
def test_refuses_a_wave_that_is_too_short(golden):
    wave = inputs.speaker_waves(golden.seed)[0][:1279]  # 5 mel frames are 1280 samples
    with pytest.raises(ValueError, match="1279 samples.*1280"):
        embed(golden, wave, inputs.SAMPLE_RATE)
