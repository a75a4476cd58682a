"""Architecture of Qwen3-TTS-Tokenizer-25Hz, read strictly from its config.json.

Its weights and configuration were not released: `released.tokenizer_25hz_config` holds
the class defaults of the official code with the rates that make 25 codes a second into
24 kHz.
"""

import dataclasses
import math

from qwen3tts_jax.config import section, tts

TOKENIZER_25HZ = tts.TOKENIZER_25HZ
REFERENCE_RATE = 16_000  # Hz, of the DiT's reference mel


@dataclasses.dataclass(frozen=True)
class Tokenizer25HzEncoderConfig(section._FromHF):
    """Log-mel to codes: Whisper's encoder in windows, with a VQ inside."""

    mel_bins: int
    max_positions: int  # after the stride of 2
    dim: int
    heads: int
    layers: int
    window: int  # positions after the stride of 2: half of the mel frames in a window
    output_dim: int  # of the projection after the last layer
    vq_layers: int  # layers before the quantiser
    codebook_size: int
    codebook_dim: int
    vq_positions: bool  # positions are added again after the quantiser
    vq_stride: int

    @classmethod
    def read(cls, s: section.Section):
        s.only("audio_vq_type", "GRVQ")
        s.only("audio_vq_ds_rate", 2)  # 100 mel frames, 50 steps, 25 codes a second
        config = cls(
            mel_bins=s.need("n_mels", int),
            max_positions=s.need("n_ctx", int),
            dim=s.need("n_state", int),
            heads=s.need("n_head", int),
            layers=s.need("n_layer", int),
            window=s.need("n_window", int),
            output_dim=s.need("output_dim", int),
            vq_layers=s.need("audio_vq_layers", int),
            codebook_size=s.need("audio_vq_codebook_size", int),
            codebook_dim=s.need("audio_vq_codebook_dim", int),
            vq_positions=s.need("audio_vq_pe", bool),
            vq_stride=s.need("audio_vq_ds_rate", int),
        )
        s.problems += [f"{s.path}: {problem}" for problem in config._problems()]
        return config

    def _problems(self) -> list[str]:
        """What the fields, each of its kind, cannot be together."""
        rules = (
            (
                self.window % 2 == 0 and 0 < self.window <= self.max_positions,
                f"got n_window {self.window}, expected an even number, at most n_ctx "
                f"{self.max_positions}",
            ),
            (
                0 < self.vq_layers <= self.layers,
                f"got audio_vq_layers {self.vq_layers}, expected 1 to n_layer "
                f"{self.layers}",
            ),
            (
                self.heads > 0 and self.dim % self.heads == 0,
                f"got n_state {self.dim}, expected a multiple of n_head {self.heads}",
            ),
        )
        return [problem for holds, problem in rules if not holds]


@dataclasses.dataclass(frozen=True)
class DiTConfig(section._FromHF):
    """Codes, x-vector and reference mel to mel, by flow matching."""

    dim: int
    layers: int
    heads: int
    head_dim: int
    ffn_ratio: int
    code_dim: int
    codes: int  # of the embedding; one more row stands for no code
    repeats: int  # mel frames a code
    mel_bins: int
    block: int  # mel frames
    look_ahead: tuple[int, ...]  # layers that see one block ahead
    look_back: tuple[int, ...]  # ... one block back
    rope_theta: float
    xvector_dim: int
    reference: tts.SpeakerEncoderConfig  # ECAPA-TDNN over the reference mel

    @classmethod
    def read(cls, s: section.Section):
        return cls(
            dim=s.need("hidden_size", int),
            layers=s.need("num_hidden_layers", int),
            heads=s.need("num_attention_heads", int),
            head_dim=s.need("head_dim", int),
            ffn_ratio=s.need("ff_mult", int),
            code_dim=s.need("emb_dim", int),
            codes=s.need("num_embeds", int),
            repeats=s.need("repeats", int),
            mel_bins=s.need("mel_dim", int),
            block=s.need("block_size", int),
            look_ahead=s.layers("look_ahead_layers"),
            look_back=s.layers("look_backward_layers"),
            rope_theta=s.default("rope_theta", 10000.0),
            xvector_dim=s.need("enc_emb_dim", int),
            reference=tts.SpeakerEncoderConfig.widths(s, REFERENCE_RATE),
        )


@dataclasses.dataclass(frozen=True)
class BigVGANConfig(section._FromHF):
    """Mel to wave."""

    mel_bins: int
    channels: int  # before the first upsampling; each halves them
    kernel_sizes: tuple[int, ...]  # of the residual blocks after each upsampling
    dilations: tuple[tuple[int, ...], ...]  # of each of them
    upsample_rates: tuple[int, ...]
    upsample_kernel_sizes: tuple[int, ...]

    @classmethod
    def read(cls, s: section.Section):
        config = cls(
            mel_bins=s.need("mel_dim", int),
            channels=s.need("upsample_initial_channel", int),
            kernel_sizes=s.ints("resblock_kernel_sizes"),
            dilations=s.lists("resblock_dilation_sizes"),
            upsample_rates=s.ints("upsample_rates"),
            upsample_kernel_sizes=s.ints("upsample_kernel_sizes"),
        )
        if not s.problems:
            s.problems += [f"{s.path}.{problem}" for problem in config._problems()]
        return config

    def _problems(self) -> list[str]:
        """What cannot be built, or not so that a mel frame makes a fixed hop."""
        found, sizes = [], list(self.upsample_kernel_sizes)
        if self.channels % 2 ** len(self.upsample_rates) or not self.channels:
            expected = f"a multiple of 2^{len(self.upsample_rates)} for its upsamplings"
            found.append(
                f"upsample_initial_channel: got {self.channels}, expected {expected}"
            )
        rates = list(self.upsample_rates)
        fits = [k >= r and (k - r) % 2 == 0 for k, r in zip(sizes, rates)]
        if len(sizes) != len(rates) or not all(fits):
            found.append(
                f"upsample_kernel_sizes: got {sizes}, expected for each of "
                f"upsample_rates {rates} the rate plus an even number"
            )
        if not self.kernel_sizes or not all(k % 2 for k in self.kernel_sizes):
            sizes = list(self.kernel_sizes)
            found.append(f"resblock_kernel_sizes: got {sizes}, expected odd ones")
        # the official class builds three pairs of convolutions in each block
        if [len(d) for d in self.dilations] != [3] * len(self.kernel_sizes):
            dilations = [list(d) for d in self.dilations]
            found.append(
                f"resblock_dilation_sizes: got {dilations}, expected three for each of "
                "resblock_kernel_sizes"
            )
        return found

    @property
    def samples_per_mel(self) -> int:
        return math.prod(self.upsample_rates)


@dataclasses.dataclass(frozen=True)
class Tokenizer25HzConfig(section._FromHF):
    """Qwen3-TTS-Tokenizer-25Hz: encoder, DiT, BigVGAN and the rates they join."""

    encoder: Tokenizer25HzEncoderConfig
    dit: DiTConfig
    bigvgan: BigVGANConfig
    input_sample_rate: int
    output_sample_rate: int
    samples_per_code_in: int
    samples_per_code: int

    @classmethod
    def read(cls, s: section.Section):
        s.only("model_type", TOKENIZER_25HZ)
        s.only("input_sample_rate", 16000)
        s.only("output_sample_rate", 24000)
        s.only("encode_downsample_rate", 640)
        decoder = s.section("decoder_config")
        config = cls(
            encoder=Tokenizer25HzEncoderConfig.read(s.section("encoder_config")),
            dit=DiTConfig.read(decoder.section("dit_config")),
            bigvgan=BigVGANConfig.read(decoder.section("bigvgan_config")),
            input_sample_rate=s.need("input_sample_rate", int),
            output_sample_rate=s.need("output_sample_rate", int),
            samples_per_code_in=s.need("encode_downsample_rate", int),
            samples_per_code=s.need("decode_upsample_rate", int),
        )
        made = config.dit.repeats * config.bigvgan.samples_per_mel
        if made != config.samples_per_code:
            s.problems.append(
                f"{s.path}.decode_upsample_rate: got {config.samples_per_code}, "
                f"expected repeats * product of upsample_rates = {made}"
            )
        return config
