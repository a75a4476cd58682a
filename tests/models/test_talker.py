"""The talker over whole prompts, against the official one."""

import parity


@parity.over("generation")
def test_hidden_states_after_a_prompt(golden):
    for name, rows in golden.read_prompts.items():
        theirs = golden.arrays[f"prompt/{name}/hidden"]
        for row, ours in enumerate(rows):
            hidden = theirs[row, theirs.shape[1] - len(ours.hidden) :]
            parity.assert_close("talker hidden", ours.hidden, hidden, parity.CLOSE)


@parity.over("generation")
def test_logits_after_a_prompt(golden):
    name = next(iter(golden.cases))  # of the first case alone
    theirs = golden.arrays[f"prompt/{name}/logits"]
    for ours, logits in zip(golden.read_prompts[name], theirs, strict=True):
        parity.assert_close("talker logits", ours.logits, logits, parity.CLOSE)
