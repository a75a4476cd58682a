"""config.json contents of tiny models: the released values, with smaller widths.

For tests and first steps: everything runs, in seconds; nothing sounds.

Each size keeps the relations between the released widths: at 0.6B the code predictor is
as wide as the talker, at 1.7B it is narrower and the text embedding as wide as the
talker.  Vocabularies, ids and sample rates are the real ones.
"""

from qwen3tts_jax.config import released

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
ENCODER_25HZ = dict(
    n_state=32,
    n_head=4,
    n_layer=3,
    output_dim=48,
    audio_vq_layers=2,
    audio_vq_codebook_size=512,
    audio_vq_codebook_dim=32,
)
DIT = dict(
    hidden_size=64,
    num_hidden_layers=4,
    num_attention_heads=4,
    head_dim=16,
    emb_dim=24,
    num_embeds=512,
    look_ahead_layers=[1],
    look_backward_layers=[0, 3],
    enc_emb_dim=20,
    enc_dim=16,
    enc_channels=[16, 16, 16, 16, 48],
    enc_attention_channels=8,
    enc_se_channels=8,
)
BIGVGAN = dict(upsample_initial_channel=128)


def tts_config(variant: str, size: str = "0.6B") -> dict:
    """config.json of a tiny TTS checkpoint; arguments: see `released.tts_config`."""
    return _narrow(released.tts_config(size, variant), size)


def tts_config_25hz(variant: str, size: str = "0.6B") -> dict:
    """config.json of a tiny 25Hz TTS checkpoint; see `released.tts_config_25hz`."""
    codes = tokenizer_25hz_config()["encoder_config"]["audio_vq_codebook_size"]
    return _narrow(released.tts_config_25hz(size, variant, codes), size)


def _narrow(config: dict, size: str) -> dict:
    talker = config["talker_config"]
    talker |= TALKER | dict(text_hidden_size=TEXT_DIM[size])
    talker["rope_scaling"]["mrope_section"] = MROPE_SECTION
    if "code_predictor_config" in talker:
        predictor = PREDICTOR | dict(hidden_size=PREDICTOR_DIM[size])
        talker["code_predictor_config"] |= predictor
    if "speaker_encoder_config" in config:
        speaker = SPEAKER_ENCODER | dict(enc_dim=TALKER["hidden_size"])
        config["speaker_encoder_config"] |= speaker
    return config


def tokenizer_config() -> dict:
    """speech_tokenizer/config.json of a tiny Qwen3-TTS-Tokenizer-12Hz."""
    config = released.tokenizer_12hz_config()
    config["decoder_config"] |= DECODER
    config["encoder_config"] |= ENCODER
    return config


def tokenizer_25hz_config() -> dict:
    """speech_tokenizer/config.json of a tiny Qwen3-TTS-Tokenizer-25Hz."""
    config = released.tokenizer_25hz_config()
    config["encoder_config"] |= ENCODER_25HZ
    config["decoder_config"]["dit_config"] |= DIT
    config["decoder_config"]["bigvgan_config"] |= BIGVGAN
    # the official x-vector model is no random one: ours stands in its place
    xvectors = SPEAKER_ENCODER | dict(enc_dim=DIT["enc_emb_dim"], sample_rate=24000)
    return config | dict(speaker_encoder_config=xvectors)
