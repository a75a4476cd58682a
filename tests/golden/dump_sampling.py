"""Golden values of sampling: transformers' own processors, in their official order."""

import inputs
import numpy as np
import torch
import transformers

TOP = 16  # probabilities kept of each row
MIN_NEW_TOKENS = 2
SUPPRESSED = [
    i
    for i in range(inputs.CODEC_VOCABULARY - 1024, inputs.CODEC_VOCABULARY)
    if i != inputs.CODEC_EOS
]


def processors(talker, setting: inputs.Setting, top_p: float):
    config = transformers.GenerationConfig(
        do_sample=True,
        temperature=setting.temperature,
        top_k=setting.top_k,
        top_p=top_p,
        repetition_penalty=setting.repetition_penalty,
        eos_token_id=inputs.CODEC_EOS if setting.talker else None,
        pad_token_id=inputs.CODEC_PAD,
        min_new_tokens=MIN_NEW_TOKENS if setting.talker else None,
        suppress_tokens=SUPPRESSED if setting.talker else None,
    )
    talker._prepare_special_tokens(config, device="cpu")
    return talker._get_logits_processor(config, input_ids_seq_length=0, device="cpu")


def top_p_gap(scores: torch.Tensor, top_p: float) -> np.ndarray:
    """How near the cumulative probabilities come to the cut: tiny means undecided."""
    rising = np.sort(scores.double().softmax(-1).numpy(), -1).cumsum(-1)
    return np.abs(rising - (1 - top_p)).min(-1)


def dump(golden, tts, seed: int) -> None:
    """For each of inputs.SETTINGS and each row: which ids stay, and how likely."""
    logits = torch.from_numpy(inputs.sampling_logits(seed))
    history = torch.from_numpy(inputs.sampling_history(seed)).long()
    kept, gaps, ids, top = [], [], [], []
    for setting in inputs.SETTINGS:
        past = history[:, : setting.step]
        before = processors(tts.model.talker, setting, 1.0)(past, logits.clone())
        scores = processors(tts.model.talker, setting, setting.top_p)(
            past, logits.clone()
        )
        best = torch.topk(scores.softmax(-1), TOP)
        kept.append(torch.isfinite(scores))
        gaps.append(
            top_p_gap(before, setting.top_p) if setting.top_p < 1 else np.ones(6)
        )
        ids.append(best.indices)
        top.append(best.values)
    golden.note("sampling/settings", [repr(setting) for setting in inputs.SETTINGS])
    golden.put("sampling/kept_bits", np.packbits(torch.stack(kept).numpy(), axis=-1))
    golden.put("sampling/kept_count", torch.stack(kept).sum(-1))
    golden.put("sampling/top_p_gap", np.stack(gaps))
    golden.put("sampling/top_ids", torch.stack(ids), np.int16)
    golden.put("sampling/top_probabilities", torch.stack(top))
