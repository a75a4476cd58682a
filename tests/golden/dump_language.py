"""Golden values of the language model: prompts, greedy codes, predictor, training."""

import contextlib
import dataclasses
import types

import dump_codec
import inputs
import numpy as np
import torch
import torch.nn.functional as F

PENALTIES = (1.05, 1.0)
MAX_NEW_TOKENS = 50  # the official code makes one frame less
_EVERY = 8  # of the predictor's logits


@contextlib.contextmanager
def spying(model):
    """Notes what a generate method asks for, its prompt, and every choice it makes.

    With a single codebook the official loop asks its predictor for no codes at all, and
    fails; here it gets none.
    """
    seen = types.SimpleNamespace(asked=None, prompt=None, result=None, residual=[])
    predictor = model.talker.code_predictor
    generate, talk, predict = model.generate, model.talker.generate, predictor.generate

    def outer(**kwargs):
        seen.asked = kwargs
        return generate(**kwargs)

    def talker(**kwargs):
        seen.prompt = kwargs
        seen.result = talk(**kwargs, output_logits=True, output_scores=True)
        return seen.result

    def inner(**kwargs):
        if model.talker.config.num_code_groups == 1:
            rows = len(kwargs["inputs_embeds"])
            nothing = torch.zeros(rows, 0, dtype=torch.long)
            return types.SimpleNamespace(sequences=nothing)
        result = predict(**kwargs, output_logits=True)
        seen.residual.append(torch.stack(result.logits))  # [15, B, V]
        return result

    model.generate, model.talker.generate, predictor.generate = outer, talker, inner
    try:
        yield seen
    finally:
        del model.generate, model.talker.generate, predictor.generate


def run(tts, case: inputs.Case, seed: int, **options):
    """One greedy call of the generate method that a case is for."""
    call = {"text": list(case.texts), "language": list(case.languages)}
    call |= {"do_sample": False, "subtalker_dosample": False} | options
    call |= {"non_streaming_mode": case.non_streaming}
    kind = tts.model.tts_model_type
    with spying(tts.model) as seen:
        if kind == "custom_voice":
            call |= {"speaker": list(case.speakers), "instruct": list(case.instructs)}
            tts.generate_custom_voice(**call)
        elif kind == "voice_design":
            tts.generate_voice_design(**call, instruct=list(case.instructs))
        else:
            prompt = clone_prompt(tts, case, seed)
            tts.generate_voice_clone(**call, voice_clone_prompt=prompt)
    return seen


def clone_prompt(tts, case: inputs.Case, seed: int) -> list:
    waves, items = inputs.references(seed), []
    for name, said in zip(case.references, case.reference_texts, strict=True):
        items += tts.create_voice_clone_prompt(
            (waves[name], inputs.SAMPLE_RATE),
            ref_text=said,
            x_vector_only_mode=said is None,
        )
    return items


# ------------------------------------------------------------------ prompts, codes


def dump_generation(golden, tts, seed: int) -> None:
    end = tts.model.config.talker_config.codec_eos_token_id
    if tts.model.talker.config.num_code_groups == 1:
        put_single_references(golden, tts, seed)
    for number, (name, case) in enumerate(
        inputs.CASES[tts.model.tts_model_type].items()
    ):
        for penalty in PENALTIES:
            options = {"repetition_penalty": penalty, "max_new_tokens": MAX_NEW_TOKENS}
            seen = run(tts, case, seed, **options)
            if penalty == PENALTIES[0]:
                golden.note(f"prompt/{name}", dataclasses.asdict(case))
                put_prompt(golden, f"prompt/{name}", seen)
                if number == 0:
                    golden.put(f"prompt/{name}/logits", seen.result.logits[0])
            put_greedy(golden, f"greedy_{penalty}/{name}", seen, end)


def put_single_references(golden, tts, seed: int) -> None:
    """The codes that stand for those of a 25Hz tokenizer."""
    codec = tts.model.speech_tokenizer
    for name, wave in inputs.references(seed).items():
        (codes,) = codec.encode(wave, inputs.SAMPLE_RATE).audio_codes
        golden.put_codes(f"reference/{name}/codes", codes)


def put_prompt(golden, key: str, seen) -> None:
    asked, prompt = seen.asked, seen.prompt
    clone = asked.get("voice_clone_prompt") or {}
    listed = {
        name: asked.get(name) for name in ("input_ids", "instruct_ids", "ref_ids")
    }
    for name, values in listed.items():
        for row, ids in enumerate(values or ()):
            if ids is not None:
                golden.put(f"{key}/{name}_{row}", ids[0])
    for row, vector in enumerate(clone.get("ref_spk_embedding", ())):
        golden.put(f"{key}/speaker_embedding_{row}", vector)
    for row, codes in enumerate(clone.get("ref_code", ())):
        if codes is not None:
            golden.put_codes(f"{key}/reference_codes_{row}", codes)
    mask = prompt["attention_mask"]
    golden.put(f"{key}/attention_mask", mask, np.uint8)
    for name in ("inputs_embeds", "trailing_text_hidden", "tts_pad_embed"):
        golden.put(f"{key}/{name}", prompt[name])
    layers, _ = seen.result.hidden_states[0]
    # what happens at left padding is of no consequence
    golden.put(f"{key}/hidden", torch.where(mask[..., None] > 0, layers[-1], 0.0))


def put_greedy(golden, key: str, seen, end: int) -> None:
    """All frames, also after a row's end; lengths: frames before the end."""
    frames = [codes for _, codes in seen.result.hidden_states if codes is not None]
    codes = torch.stack(frames, 1)  # [B, T, Q]
    ends = codes[..., 0] == end
    lengths = torch.where(ends.any(1), ends.int().argmax(1), codes.shape[1])
    first = margin(torch.stack(seen.result.scores, 1))  # [B, T + 1]
    if seen.residual:
        residual = margin(torch.stack(seen.residual, 1))  # [15, T, B]
    else:
        residual = torch.zeros(0, codes.shape[1], len(codes))
    golden.put_codes(f"{key}/codes", codes)
    golden.put(f"{key}/lengths", lengths)
    golden.put(f"{key}/first_margin", first[:, : codes.shape[1]], np.float16)
    golden.put_near_ties(f"{key}/residual", residual.permute(2, 1, 0))  # [B, T, 15]
    smallest = {"first": float(first.min())}
    if len(residual):
        smallest["residual"] = float(residual.min())
    golden.note(f"{key}/smallest_margin", smallest)


def margin(scores: torch.Tensor) -> torch.Tensor:
    """How far the best score is ahead of the second."""
    best = torch.topk(scores.float(), 2, dim=-1).values
    return best[..., 0] - best[..., 1]


# ------------------------------------------------------------------ losses


def dump_predictor(golden, tts, seed: int) -> None:
    talker = tts.model.talker
    hidden, codes = inputs.predictor_inputs(seed, talker.config.hidden_size)
    codes = torch.from_numpy(codes).long()
    logits, _ = talker.forward_sub_talker_finetune(codes, torch.from_numpy(hidden))
    loss = F.cross_entropy(logits.flatten(0, 1), codes[:, 1:].flatten())
    golden.put("predictor/hidden", hidden)
    golden.put_codes("predictor/codes", codes)
    golden.put("predictor/logits_of_every_8th_code", logits[..., ::_EVERY])
    golden.put("predictor/logsumexp", logits.logsumexp(-1))
    golden.put("predictor/loss", loss)  # head i on codebook i, as generation uses it


def dump_training(golden, tts, seed: int) -> None:
    """Losses of codes after a prompt, every head scored on what it chooses in use."""
    kind, codes = tts.model.tts_model_type, inputs.training_codes(seed)
    for name in inputs.TRAINING_CASES[kind]:
        seen = run(tts, inputs.CASES[kind][name], seed, max_new_tokens=2)
        first, residual, embeds = teacher_forced(
            tts.model.talker, seen.prompt, torch.from_numpy(codes).long()
        )
        means = torch.cat([first[:-1].mean()[None], residual.mean(0)])
        golden.put(f"training/{name}/inputs_embeds", embeds)
        golden.put(f"training/{name}/first_cross_entropy", first)
        golden.put(f"training/{name}/residual_cross_entropy", residual)
        golden.put(f"training/{name}/losses", means)
        golden.put(f"training/{name}/loss_0_with_eos", first.mean())


def teacher_forced(talker, prompt, codes: torch.Tensor):
    """Cross entropies [T + 1] of codebook 0 and the end, [T, 15] of the others.

    The hidden state before a frame predicts all of the frame, as in generation: frame k
    is its codes' embeddings plus the k-th trailing text (or the padding after it).
    """
    length, frames = prompt["inputs_embeds"].shape[1], len(codes)
    tables = [
        talker.get_input_embeddings(),
        *talker.code_predictor.get_input_embeddings(),
    ]
    sums = sum(table(codes[:, i]) for i, table in enumerate(tables))  # [T, D]
    text = prompt["trailing_text_hidden"][0, :frames]
    text = torch.cat([text, prompt["tts_pad_embed"][0].expand(frames - len(text), -1)])
    embeds = torch.cat([prompt["inputs_embeds"], (sums + text)[None]], 1)
    talker.rope_deltas = None  # left from the call before
    mask = torch.ones(embeds.shape[:2], dtype=torch.long)
    out = talker(inputs_embeds=embeds, attention_mask=mask, output_hidden_states=True)
    hidden = out.hidden_states[0][-1][0, length - 1 : -1]  # [T, D]
    end = torch.tensor([inputs.CODEC_EOS])
    targets = torch.cat([codes[:, 0], end])
    first = F.cross_entropy(out.logits[0, length - 1 :], targets, reduction="none")
    logits, _ = talker.forward_sub_talker_finetune(codes, hidden)
    residual = F.cross_entropy(logits.mT, codes[:, 1:], reduction="none")
    return first, residual, embeds


# ------------------------------------------------------------------ speaker


def dump_speaker(golden, tts, seed: int) -> None:
    for i, wave in enumerate(inputs.speaker_waves(seed)):
        vector = tts.model.extract_speaker_embedding(wave, inputs.SAMPLE_RATE)
        golden.put(f"speaker/embedding_{i}", vector)


def dump_references(golden, tts, seed: int) -> None:
    for name, wave in inputs.references(seed).items():
        tokenizer = tts.model.speech_tokenizer
        dump_codec.put_encoded(golden, f"reference/{name}", tokenizer, wave)
