"""Golden values of the semantic teachers: transformers' WavLM and Whisper encoders.

    cd tests/golden; $QWEN_TTS_PYTHON dump_teachers.py --out teachers.safetensors

Tiny models with random weights, which the file keeps: KIND/weights/NAME, and for each
row of KIND/row{i} (a wave, int16 [W], 16 kHz) KIND/row{i}/states, float32 [L + 1, T,
D], of the row alone.  Its notes hold the configurations.  No official weights go in.
"""

import argparse
import pathlib

import numpy as np
import torch
import transformers
from golden_file import Golden

RATE = 16_000
SIZES = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=3)
SIZES |= dict(num_attention_heads=2, conv_dim=[8, 12, 8], conv_kernel=[10, 3, 2])
SIZES |= dict(conv_stride=[5, 2, 2], num_conv_pos_embedding_groups=4)
SIZES |= dict(num_buckets=16, max_bucket_distance=40)  # short of the rows' 80 steps
WAVLM = {
    "base": dict(num_conv_pos_embeddings=6),
    "large": dict(
        num_conv_pos_embeddings=5,
        do_stable_layer_norm=True,
        feat_extract_norm="layer",
        conv_bias=True,
    ),
}
LENGTHS = (1600, 1111)
WHISPER = dict(d_model=16, encoder_layers=2, encoder_attention_heads=2)
WHISPER |= dict(encoder_ffn_dim=24, max_source_positions=50, num_mel_bins=80)
DISTANCES = 900  # whose buckets are noted, with the released 320 and 800


def randomize(model: torch.nn.Module, generator: torch.Generator) -> None:
    """Every parameter N(0, 0.3), those that scale about 1: defaults would hide much."""
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith("embed_positions.weight"):
            continue  # sinusoids
        scales = name.endswith(("norm.weight", "original0", "gru_rel_pos_const"))
        parameter.data = 0.3 * noise + float(scales)


def wave(samples: int, rng: np.random.Generator) -> np.ndarray:
    """A tone that rises, in noise, off centre."""
    time = np.arange(samples) / RATE
    tone = np.sin(2 * np.pi * (300 + 2000 * time) * time)
    noise = rng.normal(size=samples)
    return np.int16(2**15 * np.clip(0.2 * tone + 0.05 * noise + 0.03, -1, 0.99))


def keep(golden: Golden, kind: str, model, rows, run) -> None:
    for name, tensor in model.state_dict().items():
        golden.put(f"{kind}/weights/{name}", tensor)
    for i, row in enumerate(rows):
        golden.put(f"{kind}/row{i}", row)
        with torch.no_grad():
            states = run(np.float32(row) / 2**15).hidden_states
        golden.put(f"{kind}/row{i}/states", torch.stack(states)[:, 0])


def dump_wavlm(golden, kind: str, rng, generator) -> None:
    config = transformers.WavLMConfig(**SIZES, **WAVLM[kind])
    model = transformers.WavLMModel(config).eval()
    randomize(model, generator)
    processor = transformers.Wav2Vec2FeatureExtractor(do_normalize=kind == "large")

    def run(row):
        ready = processor(row, sampling_rate=RATE, return_tensors="pt").input_values
        return model(ready, output_hidden_states=True)

    keep(golden, kind, model, [wave(n, rng) for n in LENGTHS], run)
    golden.note(f"{kind}/config", config.to_dict())
    golden.note(f"{kind}/processor", processor.to_dict())


def dump_buckets(golden) -> None:
    attention = transformers.models.wavlm.modeling_wavlm.WavLMAttention(8, 2)
    distance = torch.arange(-DISTANCES, DISTANCES + 1)
    golden.put("buckets", attention._relative_positions_bucket(distance), np.int16)


def dump_whisper(golden, rng, generator) -> None:
    config = transformers.WhisperConfig(**WHISPER)
    model = transformers.models.whisper.modeling_whisper.WhisperEncoder(config).eval()
    randomize(model, generator)
    extract = transformers.WhisperFeatureExtractor(chunk_length=1)

    def run(row):
        mel = extract(row, sampling_rate=RATE, return_tensors="pt").input_features
        golden.put(f"whisper/mel{len(row)}", mel[0].T)
        return model(mel, output_hidden_states=True)

    keep(golden, "whisper", model, [wave(n, rng) for n in (RATE, 11_111)], run)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--seed", type=int, default=7)
    args = parser.parse_args()
    golden, rng = Golden(), np.random.default_rng(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    for kind in WAVLM:
        dump_wavlm(golden, kind, rng, generator)
    dump_buckets(golden)
    dump_whisper(golden, rng, generator)
    golden.note(
        "made_with",
        dict(torch=torch.__version__, transformers=transformers.__version__)
        | dict(seed=args.seed),
    )
    golden.save(args.out)


if __name__ == "__main__":
    main()
