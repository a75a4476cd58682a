"""Architecture of Qwen3-TTS-Tokenizer-12Hz, read strictly from its config.json."""

import dataclasses

from qwen3tts_jax.config import section, tts


@dataclasses.dataclass(frozen=True)
class Tokenizer12HzEncoderConfig(section._FromHF):
    """Wave to codes (the Mimi encoder).  Source: encoder_config."""

    transformer: tts.TransformerConfig
    filters: int
    ratios: tuple[int, ...]  # as in the file: the last one downsamples first
    kernel_size: int
    last_kernel_size: int
    residual_kernel_size: int
    residual_layers: int
    dilation_growth: int
    compress: int
    codebook_size: int
    codebook_dim: int
    quantizers: int
    semantic_quantizers: int
    max_positions: int

    @classmethod
    def read(cls, s: section.Section):
        s.only("use_causal_conv", True)
        s.only("use_conv_shortcut", False)
        s.only("pad_mode", "constant")
        s.only("hidden_act", "gelu")
        s.only("audio_channels", 1)
        # sliding_window is read by nobody: the official encoder applies it only under
        # flash attention, which it never reaches, so that its codes are those of full
        # causal attention.
        transformer = tts.TransformerConfig.read(
            s,
            norm_eps=s.need("norm_eps", float),
            norm="layer",
            mlp="gelu",
            layer_scale=s.need("layer_scale_initial_scale", float),
            final_norm=False,
        )
        return cls(
            transformer=transformer,
            filters=s.need("num_filters", int),
            ratios=s.ints("upsampling_ratios"),
            kernel_size=s.need("kernel_size", int),
            last_kernel_size=s.need("last_kernel_size", int),
            residual_kernel_size=s.need("residual_kernel_size", int),
            residual_layers=s.need("num_residual_layers", int),
            dilation_growth=s.need("dilation_growth_rate", int),
            compress=s.need("compress", int),
            codebook_size=s.need("codebook_size", int),
            codebook_dim=s.need("codebook_dim", int),
            quantizers=s.need("num_quantizers", int),
            semantic_quantizers=s.need("num_semantic_quantizers", int),
            max_positions=s.need("max_position_embeddings", int),
        )


@dataclasses.dataclass(frozen=True)
class Tokenizer12HzDecoderConfig(section._FromHF):
    """Codes to wave.  Source: decoder_config."""

    transformer: tts.TransformerConfig
    latent_dim: int
    decoder_dim: int
    codebook_dim: int
    codebook_size: int
    quantizers: int
    upsample_rates: tuple[int, ...]
    upsampling_ratios: tuple[int, ...]

    @classmethod
    def read(cls, s: section.Section):
        s.only("hidden_act", "silu")
        s.only("num_semantic_quantizers", 1)
        transformer = tts.TransformerConfig.read(
            s,
            norm_eps=s.need("rms_norm_eps", float),
            layer_scale=s.need("layer_scale_initial_scale", float),
            window=s.need("sliding_window", int),
        )
        return cls(
            transformer=transformer,
            latent_dim=s.need("latent_dim", int),
            decoder_dim=s.need("decoder_dim", int),
            codebook_dim=s.need("codebook_dim", int),
            codebook_size=s.need("codebook_size", int),
            quantizers=s.need("num_quantizers", int),
            upsample_rates=s.ints("upsample_rates"),
            upsampling_ratios=s.ints("upsampling_ratios"),
        )


@dataclasses.dataclass(frozen=True)
class Tokenizer12HzConfig(section._FromHF):
    """Qwen3-TTS-Tokenizer-12Hz: encoder, decoder and the rates they join."""

    encoder: Tokenizer12HzEncoderConfig
    decoder: Tokenizer12HzDecoderConfig
    quantizers: int  # of the encoder's, how many are kept
    input_sample_rate: int
    output_sample_rate: int
    samples_per_frame: int

    @classmethod
    def read(cls, s: section.Section):
        s.only("model_type", tts.TOKENIZER_12HZ)
        s.only("input_sample_rate", 24000)
        s.only("output_sample_rate", 24000)
        samples = s.need("decode_upsample_rate", int)
        s.only("encode_downsample_rate", samples)
        s.need("encode_downsample_rate", int)
        return cls(
            encoder=Tokenizer12HzEncoderConfig.read(s.section("encoder_config")),
            decoder=Tokenizer12HzDecoderConfig.read(s.section("decoder_config")),
            quantizers=s.need("encoder_valid_num_quantizers", int),
            input_sample_rate=s.need("input_sample_rate", int),
            output_sample_rate=s.need("output_sample_rate", int),
            samples_per_frame=samples,
        )
