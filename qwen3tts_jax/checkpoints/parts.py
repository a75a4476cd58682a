"""The three modules of a 25 Hz tokenizer, with the key tables that they are read by."""

from qwen3tts_jax.checkpoints import key_tables_25hz, weights
from qwen3tts_jax.config import tokenizer_25hz
from qwen3tts_jax.models.tokenizer_25hz import bigvgan, dit, encoder


def parts(config: tokenizer_25hz.Tokenizer25HzConfig) -> dict[str, tuple]:
    """name -> (abstract module, its key table), for `weights.load` and `save`."""
    return dict(
        encoder=(
            weights.abstract(encoder.Encoder, config.encoder),
            key_tables_25hz.encoder_rules(config.encoder),
        ),
        dit=(
            weights.abstract(dit.DiT, config.dit),
            key_tables_25hz.dit_rules(config.dit),
        ),
        bigvgan=(
            weights.abstract(bigvgan.BigVGAN, config.bigvgan),
            key_tables_25hz.bigvgan_rules(config.bigvgan),
        ),
    )
