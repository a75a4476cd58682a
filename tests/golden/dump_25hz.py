"""Golden values of the 25 Hz tokenizer, from the official package.

    python tests/golden/dump_25hz.py DIR --seed 7 --out FILE.safetensors

DIR has the official layout, without campplus.onnx: x-vectors are inputs.  Everything is
float32 on the CPU; `inputs_25hz.py` makes the inputs.  Keys:

features/log_mel/N [T, 128], features/fbank, features/reference_mel [T, 80]
encode/N/codes [T], encode/N/embedded [T, D] (before the quantiser), near ties;
encode/N/hidden [T + 2, O] (with its marks); encode_together/N/codes
dit/time_embedding [1, D], dit/reference_embedding [2, D], dit/no_reference_embedding
dit/velocity [2, T, 80] and dit/short/velocity: of the first voice and 31 or 17 codes,
conditional and unconditional; dit/official [2, T, 80] (31 codes in both rows),
dit/short/official, dit/other: mels
bigvgan/normalized [1, 80, T], bigvgan/stage/N [1, C, W], bigvgan/staged, bigvgan/wave
decode/N [W]: a batch of 31 and of 17 codes; decode_alone/1: the latter alone

In a batch the official code does not mask what is behind the end of a row: code 0.
"""

import argparse
import contextlib
import pathlib

import golden_file
import inputs_25hz
import official  # first: makes qwen_tts importable
import torch
import torchaudio.compliance.kaldi as kaldi
import transformers
from qwen_tts.core import Qwen3TTSTokenizerV1Model
from qwen_tts.core.tokenizer_25hz.vq import speech_vq, whisper_encoder


def load(directory: pathlib.Path):
    """The tokenizer without the x-vector model that its own loader asks for."""
    read = transformers.PreTrainedModel.from_pretrained.__func__
    model = read(Qwen3TTSTokenizerV1Model, str(directory), dtype=torch.float32)
    return model.eval()


def attend(_self, query, key, value, cu_seqlens):
    """Attention inside each window, as flash-attention computes it.

    The official code for CPUs adds a mask that masks nothing.
    """
    heads = _self.n_head
    cuts = cu_seqlens.tolist()
    outputs = []
    for start, stop in zip(cuts[:-1], cuts[1:]):
        parts = [
            x[start:stop].unflatten(1, (heads, -1)).transpose(0, 1)
            for x in (query, key, value)
        ]
        y = torch.nn.functional.scaled_dot_product_attention(*parts)
        outputs.append(y.transpose(0, 1).flatten(1))
    return torch.cat(outputs)


@contextlib.contextmanager
def seen(module, *, entering: bool = False):
    """A list of what leaves a module, or enters it, while the block runs."""
    caught = []
    if entering:
        hook = module.register_forward_pre_hook(lambda _m, x: caught.append(x[0]))
    else:
        hook = module.register_forward_hook(lambda _m, _x, y: caught.append(y))
    yield caught
    hook.remove()


@contextlib.contextmanager
def begun_with(noise: torch.Tensor):
    """Let the flow begin with this noise, [B, T, 80]."""
    original = torch.randn
    torch.randn = lambda *_, **__: noise.clone()
    yield
    torch.randn = original


def dump_features(golden, waves) -> None:
    for i in inputs_25hz.FEATURED:
        mel = whisper_encoder.get_mel_audio(
            waves[i], padding=True, audio_vq_ds_rate=2, n_mels=128
        )
        golden.put(f"features/log_mel/{i}", mel.T)
    voice = waves[inputs_25hz.REFERENCE][None]
    bank = kaldi.fbank(voice, num_mel_bins=80, dither=0, sample_frequency=16000)
    golden.put("features/fbank", bank)
    mel = speech_vq.MelSpectrogramFeatures().extract(voice)
    golden.put("features/reference_mel", mel[0].T)


def dump_encoding(golden, model, waves) -> None:
    encoder = model.encoder.tokenizer
    words = encoder.audio_quantizer.rvqs[0].embed[0]
    smallest = []
    for i, wave in enumerate(waves):
        with seen(encoder.audio_vq_downsample) as caught:
            codes, _ = model.encoder.quantize_speech([wave])
        embedded = caught[0][0].T  # [T, D]
        two = torch.topk(torch.cdist(embedded, words), 2, dim=-1, largest=False).values
        margins = two[:, 1:] - two[:, :1]  # [T, 1]
        golden.put_codes(f"encode/{i}/codes", codes[0])
        golden.put(f"encode/{i}/embedded", embedded)
        golden.put_near_ties(f"encode/{i}", margins)
        smallest.append(float(margins.min()))
    golden.note("encode/smallest_margins", smallest)
    together, counts = model.encoder.quantize_speech(waves)
    for i, count in enumerate(counts):
        golden.put_codes(f"encode_together/{i}/codes", together[i, :count])
    for i in inputs_25hz.CONTINUED:
        (mel,) = model.encoder.speech2mel([waves[i]])
        steps = whisper_encoder.get_T_after_cnn(mel.shape[-1])
        hidden, _ = encoder([mel], [mel.shape[-1]], [steps], [steps // 2 + 2])
        golden.put(f"encode/{i}/hidden", hidden)


def dump_dit(golden, dit, seed: int) -> None:
    config = dit.config
    codes = torch.from_numpy(inputs_25hz.full_codes(seed, config.num_embeds)).long()
    xvectors = torch.from_numpy(inputs_25hz.xvectors(seed, config.enc_emb_dim))
    mels = torch.from_numpy(inputs_25hz.reference_mels(seed))
    noise = torch.from_numpy(inputs_25hz.noise(seed))
    time = torch.tensor(inputs_25hz.TIME)
    golden.put("dit/time_embedding", dit.time_embed(time[None]))
    embed = dit.input_embed.spk_encoder
    golden.put("dit/reference_embedding", embed(mels))
    golden.put("dit/no_reference_embedding", embed(torch.zeros_like(mels[:1])))
    short = inputs_25hz.DECODED[1]
    for key, count in (("dit", codes.shape[1]), ("dit/short", short)):
        frames = count * config.repeats
        velocity = dit(
            hidden_states=noise[:1, :frames],
            speaker_embedding=xvectors[:1, None].repeat(1, frames, 1),
            condition_vector=mels[:1],
            quantized_code=codes[:1, :count],
            time_step=time,
        )
        golden.put(f"{key}/velocity", velocity)
    for key, rows, count, name in (
        ("dit/official", 2, codes.shape[1], "official"),
        ("dit/short/official", 1, short, "official"),
        ("dit/other", 1, codes.shape[1], "other"),
    ):
        steps, guidance, sway = inputs_25hz.SOLVERS[name]
        with begun_with(noise[:rows, : count * config.repeats]):
            mel = dit.sample(
                xvectors[:rows],
                mels[:rows],
                codes[:rows, :count],
                num_steps=steps,
                guidance_scale=guidance,
                sway_coefficient=sway,
            )
        golden.put(key, mel.transpose(1, 2))


def dump_bigvgan(golden, bigvgan, seed: int) -> None:
    staged, vocoded = (
        torch.from_numpy(inputs_25hz.mel(seed, frames)).transpose(1, 2)
        for frames in (inputs_25hz.STAGED, inputs_25hz.VOCODED)
    )
    golden.put("bigvgan/normalized", bigvgan.process_mel_spectrogram(staged))
    after = [up[0] for up in bigvgan.ups[1:]] + [bigvgan.activation_post]
    with contextlib.ExitStack() as stack:
        stages = [stack.enter_context(seen(m, entering=True)) for m in after]
        golden.put("bigvgan/staged", bigvgan(staged))
    for i, caught in enumerate(stages):
        golden.put(f"bigvgan/stage/{i}", caught[0])
    golden.put("bigvgan/wave", bigvgan(vocoded))


def dump_decoding(golden, model, seed: int) -> None:
    config = model.decoder.dit.config
    codes = torch.from_numpy(inputs_25hz.codes(seed, config.num_embeds)).long()
    xvectors = torch.from_numpy(inputs_25hz.xvectors(seed, config.enc_emb_dim))
    mels = torch.from_numpy(inputs_25hz.reference_mels(seed))
    noise = torch.from_numpy(inputs_25hz.noise(seed))
    with begun_with(noise):
        waves = model.decode(codes, xvectors, mels).audio_values
    for i, wave in enumerate(waves):
        golden.put(f"decode/{i}", wave)
    count = inputs_25hz.DECODED[1]
    with begun_with(noise[1:, : count * config.repeats]):
        alone = model.decode(codes[1:, :count], xvectors[1:], mels[1:])
    golden.put("decode_alone/1", alone.audio_values[0])


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=pathlib.Path)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)  # the sums of one thread, whatever the machine
    whisper_encoder.MultiHeadAttention.qkv_attention_manual = attend
    model, golden = load(args.directory), golden_file.Golden()
    golden.note("made_with", official.versions() | {"seed": args.seed})
    golden.note("fingerprints", inputs_25hz.fingerprints(args.seed))
    waves = [torch.from_numpy(wave) for wave in inputs_25hz.waves(args.seed)]
    dump_features(golden, waves)
    dump_encoding(golden, model, waves)
    dump_dit(golden, model.decoder.dit, args.seed)
    dump_bigvgan(golden, model.decoder.bigvgan, args.seed)
    dump_decoding(golden, model, args.seed)
    golden.save(args.out)


if __name__ == "__main__":
    main()
