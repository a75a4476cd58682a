"""Architecture of every neural part, read strictly from the official config.json.

One frozen, hashable dataclass per part, so that a configuration is static under
`jax.jit`.  `from_hf` takes the parsed JSON; every missing or unusable field is named
in one error.  Nothing falls back on the class defaults of the official code, which are
not the released values; the one exception is the speaker encoder, whose released
config.json itself leaves its widths to those defaults (`SPEAKER_ENCODER_DEFAULTS`).
"""

import dataclasses
from typing import Any

from qwen3tts_jax.config import section

VARIANTS = ("base", "custom_voice", "voice_design")
TOKENIZER_12HZ = "qwen3_tts_tokenizer_12hz"
TOKENIZER_25HZ = "qwen3_tts_tokenizer_25hz"
FRAME_RATES = {TOKENIZER_12HZ: 12.5, TOKENIZER_25HZ: 25.0}  # Hz


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
    def read(cls, s: section.Section, **fixed):
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
class TalkerConfig(section._FromHF):
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
    def read(cls, s: section.Section):
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
class CodePredictorConfig(section._FromHF):
    """The MTP module.  Source: talker_config.code_predictor_config."""

    transformer: TransformerConfig
    vocab_size: int
    code_groups: int
    embed_dim: int  # width of its embeddings: that of the talker

    @classmethod
    def read(cls, s: section.Section, embed_dim: int):
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
class SpeakerEncoderConfig(section._FromHF):
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
    def read(cls, s: section.Section):
        s = section.Section(SPEAKER_ENCODER_DEFAULTS | s.values, s.path, s.problems)
        s.only("sample_rate", 24000)
        return cls.widths(s, s.need("sample_rate", int))

    @classmethod
    def widths(cls, s: section.Section, sample_rate: int):
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
class Qwen3TTSConfig(section._FromHF):
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
    def read(cls, s: section.Section):
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
