"""The three modules of a 25 Hz tokenizer, with the key tables that they are read by."""

from qwen3tts_jax import config_25hz, hf, hf_keys_25hz
from qwen3tts_jax.tokenizer_25hz import bigvgan, dit, encoder


def parts(config: config_25hz.Tokenizer25HzConfig) -> dict[str, tuple]:
    """name -> (abstract module, its key table), for `hf.load` and `hf.save`."""
    return dict(
        encoder=(
            hf.abstract(encoder.Encoder, config.encoder),
            hf_keys_25hz.encoder_rules(config.encoder),
        ),
        dit=(hf.abstract(dit.DiT, config.dit), hf_keys_25hz.dit_rules(config.dit)),
        bigvgan=(
            hf.abstract(bigvgan.BigVGAN, config.bigvgan),
            hf_keys_25hz.bigvgan_rules(config.bigvgan),
        ),
    )
