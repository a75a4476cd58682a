"""AdamW or Muon, their schedule, and which parameters they may touch.

Every number is a choice of this project: the paper names none (arXiv 2601.15621).
"""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping

import jax
import optax
import optax.contrib

NO_DECAY = r"\.(scale|bias)$"  # norms and biases
SCHEDULES = ("cosine", "linear", "constant")
KINDS = ("adamw", "muon")
# Muon's: kernels that are matrices from many inputs to many outputs.  Embeddings,
# heads, the first and last layers of a wave and everything narrow is Adam's.
MATRIX = r"(?<!head\.)kernel$"
STACKED = r"\.layers\.[a-z]"  # all layers, along the first axis
NARROWEST = 8  # the smaller side of a matrix that Muon takes
CONSISTENT_RMS = 0.2  # Muon's step is as large as AdamW's (arXiv 2502.16982)


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """AdamW or Muon with warm-up.

    Attributes:
        kind: adamw | muon: orthogonalised momentum for matrices, AdamW for the rest.
        momentum: of Muon.
        steps: of the whole stage, warm-up included.
        peak: learning rate after the warm-up.
        warmup: steps from 0 to the peak.
        schedule: cosine | linear (down to `final`) | constant.
        final: of the peak, at the last step.
        b1, b2, eps, weight_decay: of AdamW; norms and biases do not decay.
        clip: largest global norm of the gradient.
        ema: decay of the averaged parameters; 0 keeps none.
        freeze: patterns over parameter paths that stay as they are.
    """

    steps: int
    peak: float
    warmup: int = 0
    schedule: str = "cosine"
    final: float = 0.1
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip: float = 1.0
    ema: float = 0.0
    freeze: tuple[str, ...] = ()
    kind: str = "adamw"
    momentum: float = 0.95

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(
                f"got optimizer kind {self.kind!r}, expected {' or '.join(KINDS)}"
            )
        if self.schedule not in SCHEDULES:
            raise ValueError(
                f"got schedule {self.schedule!r}, expected one of "
                f"{', '.join(SCHEDULES)}"
            )
        if self.peak <= 0 or self.clip <= 0:
            raise ValueError(
                f"got peak {self.peak} and clip {self.clip}, expected both above 0: "
                "else nothing is learnt"
            )
        if not 0 <= self.warmup < self.steps:
            raise ValueError(
                f"got warmup {self.warmup} of {self.steps} steps, expected 0 or more "
                "and fewer than the steps"
            )

    def learning_rate(self) -> optax.Schedule:
        """int32 [] step -> float32 []."""
        down = max(self.steps - self.warmup - 1, 1)  # the last step is steps - 1
        after = {
            "cosine": optax.cosine_decay_schedule(self.peak, down, alpha=self.final),
            "linear": optax.linear_schedule(self.peak, self.final * self.peak, down),
            "constant": optax.constant_schedule(self.peak),
        }[self.schedule]
        if not self.warmup:
            return after
        # step 0 moves already: its rate is one part of the warm-up
        up = optax.linear_schedule(self.peak / self.warmup, self.peak, self.warmup)
        return optax.join_schedules([up, after], [self.warmup])

    def transform(self) -> optax.GradientTransformation:
        """Over a dict path -> array, all but its learning rate.

        Its updates count -learning_rate(step): which step it is, the state says, so
        that a stage that takes moments over begins its own schedule.
        """
        return optax.chain(
            optax.clip_by_global_norm(self.clip),
            self._direction(),
            optax.add_decayed_weights(
                self.weight_decay,
                mask=lambda params: {p: not re.search(NO_DECAY, p) for p in params},
            ),
        )

    def _direction(self) -> optax.GradientTransformation:
        adam = optax.scale_by_adam(b1=self.b1, b2=self.b2, eps=self.eps)
        if self.kind == "adamw":
            return adam
        return optax.contrib.muon(
            learning_rate=-1.0,  # the step subtracts, with the rate of its own schedule
            beta=self.momentum,
            adam_b1=self.b1,
            adam_b2=self.b2,
            eps=self.eps,
            consistent_rms=CONSISTENT_RMS,
            muon_weight_dimension_numbers=_matrices,
        )

    def trainable(self, paths: Iterable[str]) -> tuple[str, ...]:
        """The paths that no pattern of `freeze` finds.

        Raises: ValueError for a pattern that finds none of the paths.
        """
        paths = tuple(paths)
        idle = [f for f in self.freeze if not any(re.search(f, p) for p in paths)]
        if idle:
            raise ValueError(
                f"got freeze {', '.join(map(repr, idle))}, which no parameter matches; "
                f"paths look like {paths[0]!r}"
            )
        free = [p for p in paths if not any(re.search(f, p) for f in self.freeze)]
        if not free:
            raise ValueError(
                f"got freeze {self.freeze}, which leaves nothing to train; drop one"
            )
        return tuple(free)


def is_matrix(path: str, shape: tuple[int, ...]) -> bool:
    """Whether Muon moves a parameter."""
    if not re.search(MATRIX, path) or len(shape) < 2:
        return False
    sizes = [math.prod(shape[axis] for axis in side) for side in _sides(path, shape)]
    return min(sizes) >= NARROWEST


def _sides(path: str, shape: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """(axes of the inputs, of the outputs) of a kernel seen as a matrix.

    Linear [in, out]; convolution [kernel, in, out]; transposed convolution
    [taps, in, stride, out]; stacked layers [L, in, out] are L matrices.
    """
    axes = tuple(range(len(shape)))
    first = 1 if re.search(STACKED, path) else 0
    inputs = first + (1 if len(axes) - first == 2 else 2)
    return axes[first:inputs], axes[inputs:]


def _matrices(params: Mapping[str, jax.Array]) -> dict:
    """Path -> how Muon sees a parameter as a matrix; None: it is Adam's."""

    def numbers(path, leaf) -> optax.contrib.MuonDimensionNumbers | None:
        # optax asks again with what it has masked
        if isinstance(leaf, optax.MaskedNode) or not is_matrix(path, leaf.shape):
            return None
        return optax.contrib.MuonDimensionNumbers(*_sides(path, leaf.shape))

    return {path: numbers(path, leaf) for path, leaf in params.items()}


def average(ema: dict, params: dict, decay: float) -> dict:
    """decay * ema + (1 - decay) * params, leaf by leaf."""
    return jax.tree.map(lambda e, p: decay * e + (1 - decay) * p, ema, params)
