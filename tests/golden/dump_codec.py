"""Golden values of the 12 Hz tokenizer: codes of waves, waves of codes."""

import inputs
import librosa
import numpy as np
import soundfile
import torch

EXCERPT = 4000  # samples kept at either end of a long wave
WHOLE = 7  # frames, up to which a wave is kept whole
DIFFERENT = 1e-4  # between decoding whole and in chunks


def code_margins(encoder, embeddings: torch.Tensor) -> torch.Tensor:
    """How much farther the second nearest codeword is, [T, 16]."""
    quantizer, gaps = encoder.quantizer, []
    for part in (
        quantizer.semantic_residual_vector_quantizer,
        quantizer.acoustic_residual_vector_quantizer,
    ):
        residual = part.input_proj(embeddings)
        for layer in part.layers:
            words = layer.codebook.embed[None]
            distances = torch.cdist(residual.transpose(1, 2), words)
            two = torch.topk(distances, 2, dim=-1, largest=False).values
            gaps.append(two[0, :, 1] - two[0, :, 0])
            residual = residual - layer.decode(layer.encode(residual))
    return torch.stack(gaps[: inputs.CODEBOOKS], 1)


def put_encoded(golden, key: str, tokenizer, wave: np.ndarray) -> None:
    """key/codes [T, 16] and its near ties, for a wave at 24 kHz."""
    encoder, caught = tokenizer.model.encoder, []
    hook = encoder.downsample.register_forward_hook(lambda _m, _i, o: caught.append(o))
    codes = tokenizer.encode(wave, sr=inputs.SAMPLE_RATE).audio_codes[0]
    hook.remove()
    margins = code_margins(encoder, caught[0])[: len(codes)]
    golden.put_codes(f"{key}/codes", codes)
    golden.put_near_ties(key, margins)
    golden.note(f"{key}/smallest_margin", float(margins.min()))


def dump_encoding(golden, tts, seed: int) -> None:
    tokenizer, waves = tts.model.speech_tokenizer, inputs.encoder_waves(seed)
    for i, wave in enumerate(waves):
        put_encoded(golden, f"encode/{i}", tokenizer, wave)
    together = [waves[i] for i in inputs.ENCODED_TOGETHER]
    batch = tokenizer.encode(together, sr=inputs.SAMPLE_RATE).audio_codes
    for row, codes in enumerate(batch):
        golden.put_codes(f"encode_together/{row}/codes", codes)


def dump_recording(golden, tts, path) -> None:
    """A human voice: resampled as officially, and by `inputs.resample`."""
    wave, rate = soundfile.read(path, dtype="float32", always_2d=True)
    wave = wave.mean(1)
    golden.note("recording", {"file": path.name, "samples": len(wave), "rate": rate})
    resampled = {"plain": inputs.resample(wave, rate)}
    resampled["soxr_hq"] = librosa.resample(
        wave, orig_sr=rate, target_sr=inputs.SAMPLE_RATE, res_type="soxr_hq"
    )
    for name, wave in resampled.items():
        key, tokenizer = f"recording/{name}", tts.model.speech_tokenizer
        start = wave[: 3 * inputs.SAMPLE_RATE]
        put_encoded(golden, f"{key}/3s", tokenizer, start)
        put_encoded(golden, f"{key}/whole", tokenizer, wave)
        if tts.model.speaker_encoder is not None:
            vector = tts.model.extract_speaker_embedding(start, inputs.SAMPLE_RATE)
            golden.put(f"{key}/3s/speaker_embedding", vector)


# ------------------------------------------------------------------ decoding


def put_wave(golden, key: str, wave: np.ndarray) -> None:
    """The wave, or its ends; and the sum of squares of every frame, float32 [T]."""
    frames = wave.reshape(-1, inputs.SAMPLES_PER_FRAME).astype(np.float64)
    golden.put(f"{key}/energy", np.square(frames).sum(1))
    if len(frames) <= WHOLE:
        golden.put(f"{key}/wave", wave)
    else:
        golden.put(f"{key}/first", wave[:EXCERPT])
        golden.put(f"{key}/last", wave[-EXCERPT:])


def dump_decoding(golden, tts, seed: int) -> None:
    """decode/N: as the package decodes; decode/N/unchunked where that differs."""
    tokenizer = tts.model.speech_tokenizer
    singles, all_codes = [], inputs.decoder_codes(seed)
    for i, codes in enumerate(all_codes):
        wave = tokenizer.decode([{"audio_codes": codes}])[0][0]
        singles.append(wave)
        put_wave(golden, f"decode/{i}", wave)
        whole = tokenizer.model.decoder(torch.from_numpy(codes).long().T[None])[0, 0]
        difference = np.abs(whole.numpy() - wave)
        if difference.max() > DIFFERENT:
            put_wave(golden, f"decode/{i}/unchunked", whole.numpy())
            first = int(np.argmax(difference > DIFFERENT))
            note = {"first_sample": first, "largest": float(difference.max())}
            golden.note(f"decode/{i}/unchunked_differs", note)
    together = [{"audio_codes": all_codes[i]} for i in inputs.DECODED_TOGETHER]
    peaks = [
        float(np.abs(wave - singles[i]).max())
        for i, wave in zip(
            inputs.DECODED_TOGETHER, tokenizer.decode(together)[0], strict=True
        )
    ]
    golden.note("decode_together/largest_difference_from_single", peaks)
