"""The released configuration files of the 12Hz family, as values.

Source: config.json, generation_config.json and speech_tokenizer/config.json of the
Qwen3-TTS-12Hz repositories.  The 25Hz family was not released: its values are the class
defaults of qwen-tts 0.1.1 where that has some, and say where else they are from.
"""

SIZES = ("0.6B", "1.7B")

LANGUAGES = {
    "chinese": 2055,
    "english": 2050,
    "german": 2053,
    "italian": 2070,
    "portuguese": 2071,
    "spanish": 2054,
    "japanese": 2058,
    "korean": 2064,
    "french": 2061,
    "russian": 2069,
}
DIALECTS = {"beijing_dialect": 2074, "sichuan_dialect": 2062}  # CustomVoice only
SPEAKERS = {
    "serena": 3066,
    "vivian": 3065,
    "uncle_fu": 3010,
    "ryan": 3061,
    "aiden": 2861,
    "ono_anna": 2873,
    "sohee": 2864,
    "eric": 2875,
    "dylan": 2878,
}
DIALECT_OF = {"eric": "sichuan_dialect", "dylan": "beijing_dialect"}

CODES_12HZ, CODES_25HZ = 2048, 32768  # of a codebook

GENERATION_CONFIG = {
    "do_sample": True,
    "repetition_penalty": 1.05,
    "temperature": 0.9,
    "top_p": 1.0,
    "top_k": 50,
    "subtalker_dosample": True,
    "subtalker_temperature": 0.9,
    "subtalker_top_p": 1.0,
    "subtalker_top_k": 50,
    "max_new_tokens": 8192,
}

PREPROCESSOR_CONFIG = {
    "padding_side": "left",
    "padding_value": 0.0,
    "processor_class": "Qwen3TTSProcessor",
    "return_attention_mask": True,
}

TOKENIZER_PREPROCESSOR_CONFIG = {
    "chunk_length_s": None,
    "feature_extractor_type": "EncodecFeatureExtractor",
    "feature_size": 1,
    "overlap": None,
    "padding_side": "right",
    "padding_value": 0.0,
    "return_attention_mask": True,
    "sampling_rate": 24000,
}
TOKENIZER_25HZ_PREPROCESSOR_CONFIG = TOKENIZER_PREPROCESSOR_CONFIG | {
    "sampling_rate": 16000
}


def _transformer(hidden: int, intermediate: int, layers: int) -> dict:
    return {
        "attention_bias": False,
        "attention_dropout": 0,
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "initializer_range": 0.02,
        "intermediate_size": intermediate,
        "num_attention_heads": 16,
        "num_code_groups": 16,
        "num_hidden_layers": layers,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000,
        "sliding_window": None,
        "use_cache": True,
        "use_sliding_window": False,
    }


def _talker_config(size: str, custom: bool) -> dict:
    widths = {"0.6B": (1024, 3072), "1.7B": (2048, 6144)}[size]
    predictor = _transformer(1024, 3072, 5) | {
        "layer_types": ["full_attention"] * 5,
        "max_position_embeddings": 65536,
        "max_window_layers": 28,
        "model_type": "qwen3_tts_talker_code_predictor",
        "rope_scaling": None,
        "tie_word_embeddings": False,
        "vocab_size": 2048,
    }
    return _transformer(*widths, 28) | {
        "code_predictor_config": predictor,
        "codec_bos_id": 2149,
        "codec_eos_token_id": 2150,
        "codec_language_id": LANGUAGES | (DIALECTS if custom else {}),
        "codec_nothink_id": 2155,
        "codec_pad_id": 2148,
        "codec_think_bos_id": 2156,
        "codec_think_eos_id": 2157,
        "codec_think_id": 2154,
        "max_position_embeddings": 32768,
        "model_type": "qwen3_tts_talker",
        "pad_token_id": 2148,
        "position_id_per_seconds": 13,
        "rope_scaling": {
            "interleaved": True,
            "mrope_section": [24, 20, 20],
            "rope_type": "default",
            "type": "default",
        },
        "spk_id": SPEAKERS if custom else {},
        "spk_is_dialect": {s: DIALECT_OF.get(s, False) for s in SPEAKERS}
        if custom
        else {},
        "text_hidden_size": 2048,
        "text_vocab_size": 151936,
        "vocab_size": 3072,
    }


def tts_config(size: str, variant: str) -> dict:
    """config.json of a TTS repository.

    size: "0.6B" or "1.7B"; variant: "base", "custom_voice" or "voice_design" (released
    at 1.7B only, but any size can be built).
    """
    config = {
        "architectures": ["Qwen3TTSForConditionalGeneration"],
        "assistant_token_id": 77091,
        "im_end_token_id": 151645,
        "im_start_token_id": 151644,
        "model_type": "qwen3_tts",
        "talker_config": _talker_config(size, variant == "custom_voice"),
        "tokenizer_type": "qwen3_tts_tokenizer_12hz",
        "transformers_version": "4.57.3",
        "tts_bos_token_id": 151672,
        "tts_eos_token_id": 151673,
        "tts_model_size": {"0.6B": "0b6", "1.7B": "1b7"}[size],
        "tts_model_type": variant,
        "tts_pad_token_id": 151671,
    }
    if variant == "base":
        width = config["talker_config"]["hidden_size"]
        config["speaker_encoder_config"] = {"enc_dim": width, "sample_rate": 24000}
    return config


def move_ids(talker: dict, by: int) -> None:
    """Put so many more codes before all other ids of a talker_config, in place.

    What bans the last 1024 ids but the end token then bans what is no code, as before.
    """
    for key, value in talker.items():
        if key == "vocab_size" or (key.endswith("_id") and isinstance(value, int)):
            talker[key] = value + by
    for key in ("codec_language_id", "spk_id"):
        talker[key] = {name: row + by for name, row in talker[key].items()}


def tts_config_25hz(size: str, variant: str, codes: int = CODES_25HZ) -> dict:
    """config.json of a 25Hz TTS repository: one codebook, and no code predictor.

    The 12Hz one of that size, its ids moved up behind a larger codebook.
    codes: of the codebook.  variant: "base" or "custom_voice".
    """
    config = tts_config(size, variant)
    config["tokenizer_type"] = "qwen3_tts_tokenizer_25hz"
    talker = config["talker_config"]
    del talker["code_predictor_config"]
    talker["num_code_groups"] = 1
    move_ids(talker, codes - CODES_12HZ)
    return config


def tokenizer_12hz_config() -> dict:
    """speech_tokenizer/config.json: Qwen3-TTS-Tokenizer-12Hz."""
    decoder = {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "codebook_dim": 512,
        "codebook_size": 2048,
        "decoder_dim": 1536,
        "head_dim": 64,
        "hidden_act": "silu",
        "hidden_size": 512,
        "intermediate_size": 1024,
        "latent_dim": 1024,
        "layer_scale_initial_scale": 0.01,
        "max_position_embeddings": 8000,
        "num_attention_heads": 16,
        "num_hidden_layers": 8,
        "num_key_value_heads": 16,
        "num_quantizers": 16,
        "num_semantic_quantizers": 1,
        "rms_norm_eps": 1e-05,
        "rope_theta": 10000,
        "semantic_codebook_size": 4096,
        "sliding_window": 72,
        "upsample_rates": [8, 5, 4, 3],
        "upsampling_ratios": [2, 2],
        "vector_quantization_hidden_dimension": 512,
    }
    encoder = {
        "_frame_rate": 12.5,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "audio_channels": 1,
        "codebook_dim": 256,
        "codebook_size": 2048,
        "compress": 2,
        "dilation_growth_rate": 2,
        "dtype": "float32",
        "head_dim": 64,
        "hidden_act": "gelu",
        "hidden_size": 512,
        "initializer_range": 0.02,
        "intermediate_size": 2048,
        "kernel_size": 7,
        "last_kernel_size": 3,
        "layer_scale_initial_scale": 0.01,
        "max_position_embeddings": 8000,
        "norm_eps": 1e-05,
        "normalize": False,
        "num_attention_heads": 8,
        "num_filters": 64,
        "num_hidden_layers": 8,
        "num_key_value_heads": 8,
        "num_quantizers": 32,
        "num_residual_layers": 1,
        "num_semantic_quantizers": 1,
        "pad_mode": "constant",
        "residual_kernel_size": 3,
        "rope_theta": 10000.0,
        "sampling_rate": 24000,
        "sliding_window": 250,
        "trim_right_ratio": 1.0,
        "upsample_groups": 512,
        "upsampling_ratios": [8, 6, 5, 4],
        "use_cache": False,
        "use_causal_conv": True,
        "use_conv_shortcut": False,
        "use_streaming": False,
        "vector_quantization_hidden_dimension": 256,
    }
    return {
        "architectures": ["Qwen3TTSTokenizerV2Model"],
        "decode_upsample_rate": 1920,
        "decoder_config": decoder,
        "encode_downsample_rate": 1920,
        "encoder_config": encoder,
        "encoder_valid_num_quantizers": 16,
        "input_sample_rate": 24000,
        "model_type": "qwen3_tts_tokenizer_12hz",
        "output_sample_rate": 24000,
        "transformers_version": "4.57.3",
    }


def tokenizer_25hz_config() -> dict:
    """speech_tokenizer/config.json: Qwen3-TTS-Tokenizer-25Hz, which was not released.

    Class defaults, but for what the paper says (25 codes a second of 32,768, in blocks
    of 8) and what follows from that: rates, repeats of a code, embedding and block.
    """
    encoder = {
        "audio_vq_codebook_dim": 1280,
        "audio_vq_codebook_size": CODES_25HZ,
        "audio_vq_ds_rate": 2,
        "audio_vq_layers": 6,
        "audio_vq_pe": True,
        "audio_vq_type": "GRVQ",
        "model_type": "qwen3_tts_tokenizer_v1_encoder",
        "n_ctx": 1500,
        "n_head": 20,
        "n_layer": 32,
        "n_mels": 128,
        "n_state": 1280,
        "n_window": 100,
        "output_dim": 3584,
    }
    dit = {
        "block_size": 32,  # mel frames: 8 codes; class default: 24
        "dropout": 0.1,
        "emb_dim": 512,
        "enc_attention_channels": 64,
        "enc_channels": [256, 256, 256, 256, 768],
        "enc_dilations": [1, 2, 3, 4, 1],
        "enc_dim": 128,
        "enc_emb_dim": 192,
        "enc_kernel_sizes": [5, 3, 3, 3, 1],
        "enc_res2net_scale": 2,
        "enc_se_channels": 64,
        "ff_mult": 2,
        "head_dim": 64,
        "hidden_size": 1024,
        "look_ahead_layers": [10],
        "look_backward_layers": [0, 20],
        "max_position_embeddings": 32768,
        "mel_dim": 80,
        "model_type": "qwen3_tts_tokenizer_v1_decoder_dit",
        "num_attention_heads": 16,
        "num_embeds": CODES_25HZ,  # class default: 8193
        "num_hidden_layers": 22,
        "repeats": 4,  # 25 codes, 100 mel frames a second; class default: 2
        "rope_theta": 10000.0,
    }
    bigvgan = {
        "mel_dim": 80,
        "model_type": "qwen3_tts_tokenizer_v1_decoder_bigvgan",
        "resblock_dilation_sizes": [[1, 3, 5], [1, 3, 5], [1, 3, 5]],
        "resblock_kernel_sizes": [3, 7, 11],
        "upsample_initial_channel": 1536,
        "upsample_kernel_sizes": [11, 7, 4, 4, 4, 4],
        "upsample_rates": [5, 3, 2, 2, 2, 2],
    }
    return {
        "architectures": ["Qwen3TTSTokenizerV1Model"],
        "decode_upsample_rate": 960,
        "decoder_config": {
            "bigvgan_config": bigvgan,
            "dit_config": dit,
            "model_type": "qwen3_tts_tokenizer_v1_decoder",
        },
        "encode_downsample_rate": 640,
        "encoder_config": encoder,
        "input_sample_rate": 16000,
        "model_type": "qwen3_tts_tokenizer_25hz",
        "output_sample_rate": 24000,
        "transformers_version": "4.57.3",
    }
