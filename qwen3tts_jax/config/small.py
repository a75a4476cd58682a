"""config.json contents of the small family: trained here, shipped with the package.

The layout of the released models, and the relations between their widths, at a size
that two CPU cores can speak with: 16 codebooks of 1,024 codes (2,000 bits a second),
and a talker whose ids above the codes are the released ones less 1,024, so that the
rule which bans what is no code (the last 1,024 ids but the end) stays as it is.  The
text vocabulary is a reduced one (data/small_family/vocabulary.py): its size and its
special ids are arguments here.
"""

from collections.abc import Mapping

from qwen3tts_jax.config import released

CODES = 1024  # of a codebook
FEWER = 2048 - CODES  # than in the released codebooks: ids above the codes move down
# Those that the small family is trained on; any other is spoken as Auto.
LANGUAGES = (
    *("chinese", "english", "french", "italian"),
    *("japanese", "portuguese", "spanish"),
)
NAME = "0b02"  # tts_model_size: 0.02 billion, with the codec 0.03

TALKER = dict(
    hidden_size=256,
    text_hidden_size=256,
    intermediate_size=704,
    num_hidden_layers=9,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=64,
    max_position_embeddings=8192,  # ten minutes
)
MROPE_SECTION = [12, 10, 10]  # half of head_dim
PREDICTOR = dict(
    hidden_size=192,
    intermediate_size=512,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=64,
    layer_types=["full_attention"] * 3,
    vocab_size=CODES,
)
SPEAKER_ENCODER = dict(
    enc_channels=[128, 128, 128, 128, 384],  # the last: three blocks side by side
    enc_attention_channels=64,
    enc_se_channels=64,
    enc_dim=TALKER["hidden_size"],
)
DECODER = dict(
    codebook_size=CODES,
    codebook_dim=128,  # twice the width of a codeword
    vector_quantization_hidden_dimension=128,
    latent_dim=128,
    # The last convolution makes 16 samples of 16 channels: it can be a filter bank.
    decoder_dim=16,
    # A ratio of 1 is a block at the rate of the one before: three blocks at 100 Hz,
    # two at 300, one at 1,500, and little work at 24 kHz.  Of the layouts tried on a
    # CPU the one that learns most in a given time.
    upsampling_ratios=[2, 2, 2, 1, 1, 3, 1, 5],
    upsample_rates=[16],
    hidden_size=256,
    intermediate_size=384,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=64,
    sliding_window=32,  # frames, 2.6 s: less than a crop of training
)
ENCODER = dict(
    codebook_size=CODES,
    codebook_dim=64,  # half of the decoder's
    vector_quantization_hidden_dimension=64,
    num_quantizers=16,  # all of them are kept
    num_filters=16,
    upsampling_ratios=[4, 4, 6, 10],  # the last is the first: 24 kHz -> 2,400 Hz
    hidden_size=256,
    upsample_groups=256,  # as hidden_size
    intermediate_size=512,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=64,
)


def tts_config(
    variant: str, *, text_vocab_size: int, text_ids: Mapping[str, int]
) -> dict:
    """config.json of a small TTS checkpoint.

    Args:
        variant: see `released.tts_config`.
        text_vocab_size, text_ids: of the text tokenizer, see
            `tokenizer.TextTokenizer.config_ids`.
    """
    config = released.tts_config("0.6B", variant) | dict(text_ids, tts_model_size=NAME)
    talker = config["talker_config"]
    released.move_ids(talker, -FEWER)
    languages = talker["codec_language_id"]
    dialects = released.DIALECTS if variant == "custom_voice" else {}
    talker |= TALKER | dict(
        text_vocab_size=text_vocab_size,
        codec_language_id={n: languages[n] for n in (*LANGUAGES, *dialects)},
    )
    talker["rope_scaling"]["mrope_section"] = MROPE_SECTION
    talker["code_predictor_config"] |= PREDICTOR
    if variant == "base":
        config["speaker_encoder_config"] |= SPEAKER_ENCODER
    return config


def tokenizer_config() -> dict:
    """speech_tokenizer/config.json of the small codec."""
    config = released.tokenizer_12hz_config()
    config["decoder_config"] |= DECODER
    config["encoder_config"] |= ENCODER
    return config
