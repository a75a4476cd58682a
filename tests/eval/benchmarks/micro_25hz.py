"""A 25Hz checkpoint that is smaller than tiny: its programs compile in seconds."""

import pathlib

from qwen3tts_jax.checkpoints import random_weights
from qwen3tts_jax.config import tiny

# 240 samples of a mel frame in one stage, blocks of 8 codes, one layer looks ahead
BIGVGAN = dict(
    upsample_initial_channel=8,
    upsample_rates=[240],
    upsample_kernel_sizes=[240],
    resblock_kernel_sizes=[3],
    resblock_dilation_sizes=[[1, 1, 1]],
)
DIT = dict(num_hidden_layers=2, look_ahead_layers=[1], look_backward_layers=[0])
ENCODER = dict(n_layer=1, audio_vq_layers=1)


def write(out: pathlib.Path, text_files: pathlib.Path) -> None:
    """One of custom_voice_25hz."""
    codec = tiny.tokenizer_25hz_config()
    codec["encoder_config"] |= ENCODER
    codec["decoder_config"]["dit_config"] |= DIT
    codec["decoder_config"]["bigvgan_config"] |= BIGVGAN
    tts = tiny.tts_config_25hz("custom_voice")
    random_weights.write(out, tts, codec, seed=1, text_files=text_files)
