"""Official parameter names of Qwen3-TTS-Tokenizer-25Hz: one key table per part."""

from qwen3tts_jax.checkpoints import key_tables
from qwen3tts_jax.config import tokenizer_25hz


def encoder_rules(
    config: tokenizer_25hz.Tokenizer25HzEncoderConfig,
) -> list[key_tables.Rule]:
    """25Hz Encoder: every key under encoder."""
    part = "encoder.tokenizer"
    ours, theirs = "blocks.*", f"{part}.blocks.*"
    rules = [
        *key_tables._conv("conv1", f"{part}.conv1"),
        *key_tables._conv("conv2", f"{part}.conv2"),
        key_tables.Rule("positions", f"{part}.positional_embedding"),
        *key_tables._norm(f"{ours}.attention_norm", f"{theirs}.attn_ln", True),
        *key_tables._norm(f"{ours}.mlp_norm", f"{theirs}.mlp_ln", True),
        *key_tables._linear(f"{ours}.mlp.up", f"{theirs}.mlp.0", True),
        *key_tables._linear(f"{ours}.mlp.down", f"{theirs}.mlp.2", True),
        *key_tables._norm("norm", f"{part}.ln_post", True),
        *key_tables._linear("project", f"{part}.proj", True),
        key_tables.Rule("marks.embedding", f"{part}.audio_bos_eos_token.weight"),
        *_vq_rules(config, part),
    ]
    for name in ("query", "key", "value", "out"):
        linear = f"{ours}.{name}", f"{theirs}.attn.{name}"
        rules += key_tables._linear(*linear, bias=name != "key")
    return rules


def _vq_rules(config, part: str) -> list[key_tables.Rule]:
    up = dict(layout=key_tables.CONV_TRANSPOSE)
    rules = key_tables._conv("down", f"{part}.audio_vq_downsample")
    rules += key_tables._conv("up", f"{part}.audio_vq_upsample", **up)
    if config.vq_positions:
        after = "project_positions", f"{part}.project_after_vq_pe"
        rules += key_tables._linear(*after, True)
    vq = f"{part}.audio_quantizer.rvqs.0"
    names = dict(codewords="embed", embedding_sum="embed_avg")
    names |= dict(cluster_usage="cluster_size", initialized="inited")
    for name, key in names.items():
        rules.append(key_tables.Rule(f"quantizer.{name}", f"{vq}.{key}"))
    if config.codebook_dim != config.dim:
        for name, key in dict(input_proj="in", output_proj="out").items():
            linear = f"quantizer.{name}", f"{vq}.layers.0.project_{key}"
            rules += key_tables._linear(*linear, True)
    return rules


def dit_rules(config: tokenizer_25hz.DiTConfig) -> list[key_tables.Rule]:
    """25Hz DiT: every key under decoder.dit."""
    part = "decoder.dit"
    ours, theirs = "blocks.*", f"{part}.transformer_blocks.*"
    linears = {
        "time.fc1": f"{part}.time_embed.time_mlp.0",
        "time.fc2": f"{part}.time_embed.time_mlp.2",
        "input": f"{part}.input_embed.proj",
        f"{ours}.modulation": f"{theirs}.attn_norm.linear",
        f"{ours}.query": f"{theirs}.attn.to_q",
        f"{ours}.key": f"{theirs}.attn.to_k",
        f"{ours}.value": f"{theirs}.attn.to_v",
        f"{ours}.out": f"{theirs}.attn.to_out.0",
        f"{ours}.up": f"{theirs}.ff.ff.0",
        f"{ours}.down": f"{theirs}.ff.ff.3",
        "modulation": f"{part}.norm_out.linear",
        "project": f"{part}.proj_out",
    }
    rules = [
        key_tables.Rule(
            "code_embedding.embedding", f"{part}.text_embed.codec_embed.weight"
        ),
        key_tables.Rule("inv_freq", f"{part}.rotary_embed.inv_freq"),
    ]
    for name, key in linears.items():
        rules += key_tables._linear(name, key, True)
    prefix = f"{part}.input_embed.spk_encoder"
    for rule in key_tables.speaker_encoder_rules(config.reference):
        official = rule.official.replace("speaker_encoder", prefix, 1)
        rules.append(key_tables.Rule(f"reference.{rule.ours}", official, rule.layout))
    return rules


# [in, out, kernel] <-> [in, kernel, out]
OVERLAPPING = key_tables.Layout(
    lambda x, _: x.transpose(0, 2, 1), lambda x: x.transpose(0, 2, 1)
)


def bigvgan_rules(config: tokenizer_25hz.BigVGANConfig) -> list[key_tables.Rule]:
    """BigVGAN: every key under decoder.bigvgan; its filters are not in the file."""
    part = "decoder.bigvgan"
    rules = key_tables._conv("first.convs.0", f"{part}.conv_pre")
    ups = "stages.*.up", f"{part}.ups.*.0"
    rules += key_tables._conv(*ups, layout=OVERLAPPING)
    blocks = len(config.kernel_sizes)
    for i in range(len(config.upsample_rates) * blocks):
        block = f"{part}.resblocks.{i}"
        rules += _amp_block_rules(f"stages.{i // blocks}", block, i % blocks, config)
    rules += key_tables._snake("snake.snakes.0", f"{part}.activation_post.act")
    return rules + key_tables._conv("last.convs.0", f"{part}.conv_post", bias=False)


def _amp_block_rules(stage: str, block: str, i: int, config) -> list[key_tables.Rule]:
    lead = f"{stage}.lead.parts"
    rules = key_tables._conv(f"{lead}.0.convs.{i}", f"{block}.pre_conv")
    rules += key_tables._snake(f"{lead}.1.snakes.{i}", f"{block}.pre_act.act")
    for j in range(len(config.dilations[i])):
        parts = f"{stage}.rounds.{j}.parts"
        for k in (0, 1):  # the pairs of snake and convolution
            snake = f"{block}.activations.{2 * j + k}.act"
            rules += key_tables._snake(f"{parts}.{2 * k}.snakes.{i}", snake)
            kernel = f"{parts}.{2 * k + 1}.convs.{i}"
            rules += key_tables._conv(kernel, f"{block}.convs{k + 1}.{j}")
    return rules
