"""BigVGAN of one whole row in float64, with the zeros and copies written out.

Every array is [T, C].  The parameters are those of a `bigvgan.BigVGAN`.
"""

import jax
import numpy as np

from qwen3tts_jax.models.tokenizer_25hz import anti_aliased_snake, bigvgan


def decode(net: bigvgan.BigVGAN, mel: np.ndarray) -> np.ndarray:
    """float [T, M] -> [T * samples_per_mel]."""
    net = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), net)
    x = np.clip(20 * np.log10(np.exp(mel)), -115, None) - 20
    x = np.clip(2 * (x + 115) / 115 - 1, -1, 1)
    x = same(x, net.first.convs[0])
    for index, stage in enumerate(net.stages):
        x = upsampled(x, stage.up)
        blocks = range(len(net.config.kernel_sizes))
        x = sum(amp_block(x, stage, i, causal=index < 2) for i in blocks) / len(blocks)
    x = same(snake(x, net.snake.snakes[0]), net.last.convs[0])
    return np.clip(x[:, 0], -1, 1)


def amp_block(x, stage: bigvgan.Stage, i: int, *, causal: bool):
    total = x
    if causal:
        convs, snakes = stage.lead.parts
        x = snake(same(x, convs.convs[i]), snakes.snakes[i])
    for part in stage.rounds:
        snakes1, convs1, snakes2, convs2 = part.parts
        x = only_past(snake(x, snakes1.snakes[i]), convs1.convs[i])
        second = only_past if causal else same
        x = second(snake(x, snakes2.snakes[i]), convs2.convs[i])
        total = total + x
    return total


def upsampled(x, up):
    """A transposed convolution: zeros between the inputs, the kernel turned round."""
    kernel = up.kernel[...].transpose(1, 0, 2)[::-1]  # [kernel, in, out]
    spread = np.zeros(((len(x) - 1) * up.rate + 1, x.shape[1]))
    spread[:: up.rate] = x
    margin = len(kernel) - 1 - (len(kernel) - up.rate) // 2
    return convolved(np.pad(spread, ((margin,) * 2, (0, 0))), kernel) + up.bias[...]


def only_past(x, conv):
    reach = (len(conv.kernel[...]) - 1) * conv.dilation
    return convolved(np.pad(x, ((reach, 0), (0, 0))), conv.kernel[...], conv)


def same(x, conv):
    half = len(conv.kernel[...]) // 2
    return convolved(np.pad(x, ((half, half), (0, 0))), conv.kernel[...], conv)


def convolved(x, kernel, conv=None):
    dilation = 1 if conv is None else conv.dilation
    steps = len(x) - (len(kernel) - 1) * dilation
    y = sum(x[i * dilation :][:steps] @ tap for i, tap in enumerate(kernel))
    return y if conv is None or conv.bias is None else y + conv.bias[...]


def snake(x, snake):
    taps = anti_aliased_snake.KAISER_SINC.astype(np.float64)[:, None, None] * np.eye(
        x.shape[1]
    )
    held = np.pad(x, ((5, 5), (0, 0)), "edge")
    spread = np.zeros((2 * len(held), x.shape[1]))
    spread[::2] = held
    # the full convolution of it, less 15 steps at either end
    fine = convolved(np.pad(spread, ((11, 10), (0, 0))), 2 * taps)[15:-15]
    alpha, beta = np.exp(snake.alpha[...]), np.exp(snake.beta[...])
    fine = fine + np.sin(fine * alpha) ** 2 / (beta + 1e-9)
    return convolved(np.pad(fine, ((5, 6), (0, 0)), "edge"), taps)[::2]
