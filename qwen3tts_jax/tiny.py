"""config.json contents of tiny models: the released values, with smaller widths.

For tests and first steps: everything runs, in seconds; nothing sounds.

Each size keeps the relations between the released widths: at 0.6B the code predictor is
as wide as the talker, at 1.7B it is narrower and the text embedding as wide as the
talker.  Vocabularies, ids and sample rates are the real ones.
"""

from qwen3tts_jax import released

TALKER = dict(
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
)
MROPE_SECTION = [6, 5, 5]  # half of head_dim
PREDICTOR = dict(
    intermediate_size=80,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    layer_types=["full_attention"] * 2,
)
TEXT_DIM = {"0.6B": 32, "1.7B": 64}
PREDICTOR_DIM = {"0.6B": 64, "1.7B": 48}
SPEAKER_ENCODER = dict(
    enc_channels=[32, 32, 32, 32, 96],
    enc_attention_channels=16,
    enc_se_channels=16,
)
DECODER = dict(
    latent_dim=48,
    codebook_dim=32,
    decoder_dim=64,
    hidden_size=32,
    intermediate_size=64,
    head_dim=16,  # heads * head_dim is not hidden_size, as released
    num_attention_heads=4,
    num_key_value_heads=4,
    num_hidden_layers=3,
    sliding_window=24,  # short enough for short tests to reach
    vector_quantization_hidden_dimension=32,
)
ENCODER = dict(
    codebook_dim=16,
    vector_quantization_hidden_dimension=16,
    hidden_size=32,
    upsample_groups=32,
    head_dim=8,
    num_attention_heads=4,
    num_key_value_heads=4,
    intermediate_size=64,
    num_filters=8,
    num_hidden_layers=3,
    sliding_window=20,
)


def tts_config(variant: str, size: str = "0.6B") -> dict:
    """config.json of a tiny TTS checkpoint; arguments: see `released.tts_config`."""
    config = released.tts_config(size, variant)
    talker = config["talker_config"]
    talker |= TALKER | dict(text_hidden_size=TEXT_DIM[size])
    talker["rope_scaling"]["mrope_section"] = MROPE_SECTION
    talker["code_predictor_config"] |= PREDICTOR | dict(hidden_size=PREDICTOR_DIM[size])
    if variant == "base":
        speaker = SPEAKER_ENCODER | dict(enc_dim=TALKER["hidden_size"])
        config["speaker_encoder_config"] |= speaker
    return config


def tokenizer_config() -> dict:
    """speech_tokenizer/config.json of a tiny Qwen3-TTS-Tokenizer-12Hz."""
    config = released.tokenizer_12hz_config()
    config["decoder_config"] |= DECODER
    config["encoder_config"] |= ENCODER
    return config
