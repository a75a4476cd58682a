"""Architecture of every neural part, read strictly from the official config.json.

One frozen, hashable dataclass per part, so that a configuration is static under
`jax.jit`.  `from_hf` takes the parsed JSON; every missing or unusable field is named
in one error.  Nothing falls back on the class defaults of the official code, which are
not the released values; the one exception is the speaker encoder, whose released
config.json itself leaves its widths to those defaults (`SPEAKER_ENCODER_DEFAULTS`).
"""

import dataclasses
from typing import Any

VARIANTS = ("base", "custom_voice", "voice_design")
TOKENIZER_12HZ = "qwen3_tts_tokenizer_12hz"
TOKENIZER_25HZ = "qwen3_tts_tokenizer_25hz"
FRAME_RATES = {TOKENIZER_12HZ: 12.5, TOKENIZER_25HZ: 25.0}  # Hz


class Section:
    """One JSON object of a config.json; notes what is missing or unusable."""

    def __init__(self, values: Any, path: str, problems: list[str] | None = None):
        self.problems = [] if problems is None else problems
        self.path = path
        if not isinstance(values, dict):
            self.problems.append(f"{path}: got {values!r}, expected an object")
            values = {}
        self.values = values

    def need(self, key: str, kind: type) -> Any:
        """The value of `key`, or an empty `kind` after noting what is wrong with it."""
        value = self.values.get(key)
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
            return value
        got = f"got {value!r}" if key in self.values else "missing"
        self.problems.append(f"{self.path}.{key}: {got}, expected {kind.__name__}")
        return kind()

    def default(self, key: str, value: Any) -> Any:
        """The value of `key`, or `value` where the released file leaves it out."""
        return self.need(key, type(value)) if key in self.values else value

    def only(self, key: str, *allowed: Any) -> None:
        """Note `key` if it has a value that is not implemented."""
        value = self.values.get(key)
        if key in self.values and value not in allowed:
            expected = " or ".join(repr(a) for a in allowed)
            self.problems.append(
                f"{self.path}.{key}: got {value!r}, expected {expected}"
            )

    def ints(self, key: str) -> tuple[int, ...]:
        values = self.need(key, list)
        if all(isinstance(v, int) and v > 0 for v in values):
            return tuple(values)
        self.problems.append(
            f"{self.path}.{key}: got {values!r}, expected a list of positive integers"
        )
        return ()

    def layers(self, key: str) -> tuple[int, ...]:
        """A list of layer numbers, from 0; it may be empty."""
        values = self.need(key, list)
        if all(isinstance(v, int) and v >= 0 for v in values):
            return tuple(values)
        self.problems.append(
            f"{self.path}.{key}: got {values!r}, expected a list of layer numbers"
        )
        return ()

    def lists(self, key: str) -> tuple[tuple[int, ...], ...]:
        """A list of lists of positive integers."""
        parts = self.need(key, list)
        one = [Section({key: part}, self.path, self.problems) for part in parts]
        return tuple(section.ints(key) for section in one)

    def table(self, key: str) -> tuple[tuple[str, Any], ...]:
        return tuple(sorted(self.need(key, dict).items()))

    def section(self, key: str) -> "Section":
        if key not in self.values:
            self.problems.append(f"{self.path}.{key}: missing, expected an object")
            return Section({}, f"{self.path}.{key}", [])  # one note is enough
        return Section(self.values[key], f"{self.path}.{key}", self.problems)

    def finish(self) -> None:
        if self.problems:
            raise ValueError(
                "config.json does not describe a model this package can build:\n  "
                + "\n  ".join(self.problems)
                + "\nUse the config.json of an official Qwen3-TTS repository."
            )


class _FromHF:
    """Gives a dataclass with `read(section)` the strict `from_hf(dict)`."""

    @classmethod
    def from_hf(cls, values: dict):
        """The configuration in a parsed config.json (or the part of it named `cls`).

        Raises: ValueError listing every missing or unusable field.
        """
        section = Section(values, "config.json")
        config = cls.read(section)
        section.finish()
        return config


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """A stack of pre-norm attention and feed-forward blocks."""

    dim: int
    ffn: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    rope_theta: float
    norm_eps: float
    norm: str = "rms"  # rms | layer
    mlp: str = "swiglu"  # swiglu | gelu
    qk_norm: bool = False
    layer_scale: float | None = None  # initial value
    final_norm: bool = True
    window: int | None = None  # keys a query sees, itself included

    @classmethod
    def read(cls, s: Section, **fixed):
        s.only("attention_bias", False)
        s.only("use_sliding_window", False)
        return cls(
            dim=s.need("hidden_size", int),
            ffn=s.need("intermediate_size", int),
            layers=s.need("num_hidden_layers", int),
            heads=s.need("num_attention_heads", int),
            kv_heads=s.need("num_key_value_heads", int),
            head_dim=s.need("head_dim", int),
            rope_theta=s.need("rope_theta", float),
            **fixed,
        )


@dataclasses.dataclass(frozen=True)
class TalkerConfig(_FromHF):
    """The dual-track LM.  Source: talker_config of the released config.json."""

    transformer: TransformerConfig
    vocab_size: int  # codec ids: the codes, then 1024 languages, speakers and marks
    text_vocab_size: int
    text_dim: int
    code_groups: int
    max_positions: int
    codec_pad_id: int
    codec_bos_id: int
    codec_eos_id: int
    codec_think_id: int
    codec_nothink_id: int
    codec_think_bos_id: int
    codec_think_eos_id: int
    language_ids: tuple[tuple[str, int], ...]
    speaker_ids: tuple[tuple[str, int], ...]
    speaker_dialects: tuple[tuple[str, Any], ...]  # dialect name, or False

    @classmethod
    def read(cls, s: Section):
        s.only("hidden_act", "silu")
        s.only("sliding_window", None)
        return cls(
            transformer=TransformerConfig.read(
                s, norm_eps=s.need("rms_norm_eps", float), qk_norm=True
            ),
            vocab_size=s.need("vocab_size", int),
            text_vocab_size=s.need("text_vocab_size", int),
            text_dim=s.need("text_hidden_size", int),
            code_groups=s.need("num_code_groups", int),
            max_positions=s.need("max_position_embeddings", int),
            codec_pad_id=s.need("codec_pad_id", int),
            codec_bos_id=s.need("codec_bos_id", int),
            codec_eos_id=s.need("codec_eos_token_id", int),
            codec_think_id=s.need("codec_think_id", int),
            codec_nothink_id=s.need("codec_nothink_id", int),
            codec_think_bos_id=s.need("codec_think_bos_id", int),
            codec_think_eos_id=s.need("codec_think_eos_id", int),
            language_ids=s.table("codec_language_id"),
            speaker_ids=s.table("spk_id"),
            speaker_dialects=s.table("spk_is_dialect"),
        )


@dataclasses.dataclass(frozen=True)
class CodePredictorConfig(_FromHF):
    """The MTP module.  Source: talker_config.code_predictor_config."""

    transformer: TransformerConfig
    vocab_size: int
    code_groups: int
    embed_dim: int  # width of its embeddings: that of the talker

    @classmethod
    def read(cls, s: Section, embed_dim: int):
        s.only("hidden_act", "silu")
        s.only("sliding_window", None)
        return cls(
            transformer=TransformerConfig.read(
                s, norm_eps=s.need("rms_norm_eps", float), qk_norm=True
            ),
            vocab_size=s.need("vocab_size", int),
            code_groups=s.need("num_code_groups", int),
            embed_dim=embed_dim,
        )


# The released speaker_encoder_config holds enc_dim and sample_rate alone.
# Source: Qwen3TTSSpeakerEncoderConfig (class defaults of qwen-tts 0.1.1).
SPEAKER_ENCODER_DEFAULTS = dict(
    mel_dim=128,
    enc_channels=[512, 512, 512, 512, 1536],
    enc_kernel_sizes=[5, 3, 3, 3, 1],
    enc_dilations=[1, 2, 3, 4, 1],
    enc_attention_channels=128,
    enc_res2net_scale=8,
    enc_se_channels=128,
)


@dataclasses.dataclass(frozen=True)
class SpeakerEncoderConfig(_FromHF):
    """ECAPA-TDNN.  Source: speaker_encoder_config."""

    dim: int
    sample_rate: int
    mel_bins: int
    channels: tuple[int, ...]
    kernel_sizes: tuple[int, ...]
    dilations: tuple[int, ...]
    attention_channels: int
    res2net_scale: int
    se_channels: int

    @classmethod
    def read(cls, s: Section):
        s = Section(SPEAKER_ENCODER_DEFAULTS | s.values, s.path, s.problems)
        s.only("sample_rate", 24000)
        return cls.widths(s, s.need("sample_rate", int))

    @classmethod
    def widths(cls, s: Section, sample_rate: int):
        """From a section that names the widths alone, as the 25Hz decoder's does."""
        return cls(
            dim=s.need("enc_dim", int),
            sample_rate=sample_rate,
            mel_bins=s.need("mel_dim", int),
            channels=s.ints("enc_channels"),
            kernel_sizes=s.ints("enc_kernel_sizes"),
            dilations=s.ints("enc_dilations"),
            attention_channels=s.need("enc_attention_channels", int),
            res2net_scale=s.need("enc_res2net_scale", int),
            se_channels=s.need("enc_se_channels", int),
        )


@dataclasses.dataclass(frozen=True)
class Qwen3TTSConfig(_FromHF):
    """A whole TTS checkpoint, its speech tokenizer apart."""

    variant: str
    size: str
    tokenizer_type: str
    tts_pad_id: int
    tts_bos_id: int
    tts_eos_id: int
    talker: TalkerConfig
    code_predictor: CodePredictorConfig | None  # 12Hz only
    speaker_encoder: SpeakerEncoderConfig | None  # Base only

    @property
    def single_codebook(self) -> bool:
        """Whether a frame is codebook 0 alone, so that nothing predicts the others."""
        return self.tokenizer_type == TOKENIZER_25HZ

    @property
    def frame_rate(self) -> float:
        """Frames a second, Hz."""
        return FRAME_RATES[self.tokenizer_type]

    @classmethod
    def read(cls, s: Section):
        s.only("tokenizer_type", TOKENIZER_12HZ, TOKENIZER_25HZ)
        single = s.values.get("tokenizer_type") == TOKENIZER_25HZ
        # a voice that words describe has no recording for the 25Hz decoder
        s.only("tts_model_type", *(VARIANTS[:2] if single else VARIANTS))
        variant = s.need("tts_model_type", str)
        talker_section = s.section("talker_config")
        if single:
            talker_section.only("num_code_groups", 1)
        talker = TalkerConfig.read(talker_section)
        return cls(
            variant=variant,
            size=s.need("tts_model_size", str),
            tokenizer_type=s.need("tokenizer_type", str),
            tts_pad_id=s.need("tts_pad_token_id", int),
            tts_bos_id=s.need("tts_bos_token_id", int),
            tts_eos_id=s.need("tts_eos_token_id", int),
            talker=talker,
            code_predictor=None
            if single
            else CodePredictorConfig.read(
                talker_section.section("code_predictor_config"), talker.transformer.dim
            ),
            speaker_encoder=SpeakerEncoderConfig.read(
                s.section("speaker_encoder_config")
            )
            if variant == "base"
            else None,
        )


@dataclasses.dataclass(frozen=True)
class Tokenizer12HzEncoderConfig(_FromHF):
    """Wave to codes (the Mimi encoder).  Source: encoder_config."""

    transformer: TransformerConfig
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
    def read(cls, s: Section):
        s.only("use_causal_conv", True)
        s.only("use_conv_shortcut", False)
        s.only("pad_mode", "constant")
        s.only("hidden_act", "gelu")
        s.only("audio_channels", 1)
        # sliding_window is read by nobody: the official encoder applies it only under
        # flash attention, which it never reaches, so that its codes are those of full
        # causal attention.
        transformer = TransformerConfig.read(
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
class Tokenizer12HzDecoderConfig(_FromHF):
    """Codes to wave.  Source: decoder_config."""

    transformer: TransformerConfig
    latent_dim: int
    decoder_dim: int
    codebook_dim: int
    codebook_size: int
    quantizers: int
    upsample_rates: tuple[int, ...]
    upsampling_ratios: tuple[int, ...]

    @classmethod
    def read(cls, s: Section):
        s.only("hidden_act", "silu")
        s.only("num_semantic_quantizers", 1)
        transformer = TransformerConfig.read(
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
class Tokenizer12HzConfig(_FromHF):
    """Qwen3-TTS-Tokenizer-12Hz: encoder, decoder and the rates they join."""

    encoder: Tokenizer12HzEncoderConfig
    decoder: Tokenizer12HzDecoderConfig
    quantizers: int  # of the encoder's, how many are kept
    input_sample_rate: int
    output_sample_rate: int
    samples_per_frame: int

    @classmethod
    def read(cls, s: Section):
        s.only("model_type", TOKENIZER_12HZ)
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
