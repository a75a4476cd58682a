"""Official parameter names of Qwen3-TTS-Tokenizer-25Hz: one key table per part."""

from qwen3tts_jax import config_25hz, hf_keys


def encoder_rules(
    config: config_25hz.Tokenizer25HzEncoderConfig,
) -> list[hf_keys.Rule]:
    """25Hz Encoder: every key under encoder."""
    part = "encoder.tokenizer"
    ours, theirs = "blocks.*", f"{part}.blocks.*"
    rules = [
        *hf_keys._conv("conv1", f"{part}.conv1"),
        *hf_keys._conv("conv2", f"{part}.conv2"),
        hf_keys.Rule("positions", f"{part}.positional_embedding"),
        *hf_keys._norm(f"{ours}.attention_norm", f"{theirs}.attn_ln", True),
        *hf_keys._norm(f"{ours}.mlp_norm", f"{theirs}.mlp_ln", True),
        *hf_keys._linear(f"{ours}.mlp.up", f"{theirs}.mlp.0", True),
        *hf_keys._linear(f"{ours}.mlp.down", f"{theirs}.mlp.2", True),
        *hf_keys._norm("norm", f"{part}.ln_post", True),
        *hf_keys._linear("project", f"{part}.proj", True),
        hf_keys.Rule("marks.embedding", f"{part}.audio_bos_eos_token.weight"),
        *_vq_rules(config, part),
    ]
    for name in ("query", "key", "value", "out"):
        linear = f"{ours}.{name}", f"{theirs}.attn.{name}"
        rules += hf_keys._linear(*linear, bias=name != "key")
    return rules


def _vq_rules(config, part: str) -> list[hf_keys.Rule]:
    up = dict(layout=hf_keys.CONV_TRANSPOSE)
    rules = hf_keys._conv("down", f"{part}.audio_vq_downsample")
    rules += hf_keys._conv("up", f"{part}.audio_vq_upsample", **up)
    if config.vq_positions:
        after = "project_positions", f"{part}.project_after_vq_pe"
        rules += hf_keys._linear(*after, True)
    vq = f"{part}.audio_quantizer.rvqs.0"
    names = dict(codewords="embed", embedding_sum="embed_avg")
    names |= dict(cluster_usage="cluster_size", initialized="inited")
    for name, key in names.items():
        rules.append(hf_keys.Rule(f"quantizer.{name}", f"{vq}.{key}"))
    if config.codebook_dim != config.dim:
        for name, key in dict(input_proj="in", output_proj="out").items():
            linear = f"quantizer.{name}", f"{vq}.layers.0.project_{key}"
            rules += hf_keys._linear(*linear, True)
    return rules


def dit_rules(config: config_25hz.DiTConfig) -> list[hf_keys.Rule]:
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
        hf_keys.Rule(
            "code_embedding.embedding", f"{part}.text_embed.codec_embed.weight"
        ),
        hf_keys.Rule("inv_freq", f"{part}.rotary_embed.inv_freq"),
    ]
    for name, key in linears.items():
        rules += hf_keys._linear(name, key, True)
    prefix = f"{part}.input_embed.spk_encoder"
    for rule in hf_keys.speaker_encoder_rules(config.reference):
        official = rule.official.replace("speaker_encoder", prefix, 1)
        rules.append(hf_keys.Rule(f"reference.{rule.ours}", official, rule.layout))
    return rules


# [in, out, kernel] <-> [in, kernel, out]
OVERLAPPING = hf_keys.Layout(
    lambda x, _: x.transpose(0, 2, 1), lambda x: x.transpose(0, 2, 1)
)


def bigvgan_rules(config: config_25hz.BigVGANConfig) -> list[hf_keys.Rule]:
    """BigVGAN: every key under decoder.bigvgan; its filters are not in the file."""
    part = "decoder.bigvgan"
    rules = hf_keys._conv("first.convs.0", f"{part}.conv_pre")
    ups = "stages.*.up", f"{part}.ups.*.0"
    rules += hf_keys._conv(*ups, layout=OVERLAPPING)
    blocks = len(config.kernel_sizes)
    for i in range(len(config.upsample_rates) * blocks):
        block = f"{part}.resblocks.{i}"
        rules += _amp_block_rules(f"stages.{i // blocks}", block, i % blocks, config)
    rules += hf_keys._snake("snake.snakes.0", f"{part}.activation_post.act")
    return rules + hf_keys._conv("last.convs.0", f"{part}.conv_post", bias=False)


def _amp_block_rules(stage: str, block: str, i: int, config) -> list[hf_keys.Rule]:
    lead = f"{stage}.lead.parts"
    rules = hf_keys._conv(f"{lead}.0.convs.{i}", f"{block}.pre_conv")
    rules += hf_keys._snake(f"{lead}.1.snakes.{i}", f"{block}.pre_act.act")
    for j in range(len(config.dilations[i])):
        parts = f"{stage}.rounds.{j}.parts"
        for k in (0, 1):  # the pairs of snake and convolution
            snake = f"{block}.activations.{2 * j + k}.act"
            rules += hf_keys._snake(f"{parts}.{2 * k}.snakes.{i}", snake)
            kernel = f"{parts}.{2 * k + 1}.convs.{i}"
            rules += hf_keys._conv(kernel, f"{block}.convs{k + 1}.{j}")
    return rules
