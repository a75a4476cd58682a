"""The training step compiled for accelerators that are not here.

Needs libtpu (the extra `tpu`) but no TPU.  Two cores compile the layers in minutes,
whatever their number: they are one loop.  The step of the 1.7B model, a row of 8,192
positions a device and remat "full", needs 9.1 GiB of the 15.75 of each of 256 v5e
(data 16, fsdp 16).

What is projected is a roofline: the longest of computing, memory and links at their
peaks, as if each hid the others entirely.  So it is the MFU that the program cannot
exceed, not one that it will reach.
"""

import dataclasses
import math
import os

import jax
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

from qwen3tts_jax import sharding
from qwen3tts_jax.training.aot import flops, hlo

GIB = flops.GIB
SHOWN = 8  # collectives, the largest


class DoesNotFit(ValueError):
    """The program needs more memory than a device has."""


@dataclasses.dataclass(frozen=True)
class Report:
    """What one compiled step needs; memory and traffic are of one device, in bytes.

    Attributes:
        kind, count: `device_kind` and number of the devices.
        arguments, outputs, shared, temporary, code: memory; shared is what outputs and
            arguments have in common, because it was donated.
        collectives: of the program.
        model: FLOPs that the step must compute, on all devices.
        executed: FLOPs that it computes, what is computed again included.
        counted: FLOPs that XLA's own analysis sees, on one device; it counts a loop's
            body once and sees into no kernel.
    """

    kind: str
    count: int
    arguments: int
    outputs: int
    shared: int
    temporary: int
    code: int
    collectives: tuple[hlo.Collective, ...]
    model: float
    executed: float
    counted: float

    @property
    def memory(self) -> int:
        """Bytes that a device needs at its peak."""
        needed = self.arguments + self.outputs - self.shared
        return needed + self.temporary + self.code

    @property
    def sent(self) -> float:
        """Bytes that a device sends in a step."""
        return sum(c.sent for c in self.collectives)

    @property
    def touched(self) -> float:
        """Bytes of memory traffic at least: the state read and written once, and what
        is temporary or comes from a collective written and read once."""
        received = sum(c.size * c.times for c in self.collectives)
        return self.arguments + self.outputs + 2 * (self.temporary + received)

    def seconds(self) -> dict[str, float]:
        """Least time of a step, by what takes it: compute, memory, links."""
        peak = _device(self.kind)
        return dict(
            compute=self.executed / self.count / peak.flops,
            memory=self.touched / peak.bandwidth,
            links=self.sent / peak.links,
        )

    def utilisation(self) -> float:
        """The MFU of a step that takes the longest of `seconds`."""
        time = max(self.seconds().values())
        return flops.utilisation(self.model, time, self.kind, self.count)

    def check(self) -> None:
        """Raises: DoesNotFit."""
        if self.memory > _device(self.kind).memory:
            raise DoesNotFit(_too_large(f"{self.memory / GIB:.2f} GiB", self.kind))

    def text(self) -> str:
        """The report for people."""
        seconds = self.seconds()
        longest = max(seconds, key=seconds.get)
        peak = _device(self.kind)
        lines = [
            f"{self.count} x {self.kind}",
            f"memory a device: {self.memory / GIB:.2f} GiB of {peak.memory / GIB:.2f}: "
            f"arguments {self.arguments / GIB:.2f}, temporary "
            f"{self.temporary / GIB:.2f}, results not donated "
            f"{(self.outputs - self.shared) / GIB:.2f}, code {self.code / GIB:.2f}",
            f"model FLOPs a step: {self.model:.4g}, a device "
            f"{self.model / self.count:.4g}; computed {self.executed:.4g}; XLA counts "
            f"{self.counted:.4g} a device, loops once",
            f"collectives: {sum(c.times for c in self.collectives)} a step, "
            f"{self.sent / 1e9:.3f} GB sent by a device",
            *self._largest(),
            "least time: "
            + ", ".join(f"{name} {1e3 * s:.1f} ms" for name, s in seconds.items()),
            f"projected MFU: at most {self.utilisation():.1%}, by {longest}; "
            f"{1e3 * seconds[longest]:.1f} ms a step",
        ]
        return "\n".join(lines)

    def _largest(self) -> list[str]:
        """A line for each kind, size and group, the largest first."""
        sums: dict[tuple, list[float]] = {}
        for c in self.collectives:
            entry = sums.setdefault((c.kind, c.size, c.group), [0, 0.0])
            entry[0] += c.times
            entry[1] += c.sent
        order = sorted(sums.items(), key=lambda item: -item[1][1])
        lines = [
            f"  {times:5d} x {kind} of {size / 1e6:.2f} MB over {group}: "
            f"{sent / 1e9:.3f} GB"
            for (kind, size, group), (times, sent) in order[:SHOWN]
        ]
        rest = order[SHOWN:]
        if rest:
            sent = sum(sent for _, (_, sent) in rest) / 1e9
            lines.append(f"  and {len(rest)} smaller kinds: {sent:.3f} GB")
        return lines


def devices(topology: str) -> list:
    """TPUs that are not here, as v5e:16x16, v5p:4x4x4, v6e:8x8.

    Raises: ValueError where libtpu is missing or does not know the topology.
    """
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # ask no cloud who we are
    try:
        return topologies.get_topology_desc(topology, "tpu").devices
    except (RuntimeError, NotImplementedError, ValueError) as error:
        raise ValueError(
            f"got topology {topology!r}, which cannot be made ({error}); expected for "
            "example v5e:16x16, and libtpu: pip install 'qwen3tts_jax[tpu]'; one "
            "process at a time uses it"
        ) from error


def mesh(devices: list, **shape: int) -> Mesh:
    """A mesh of such devices; shape: of `sharding.AXES`, 1 where left out.

    Raises: ValueError if the shape is not of all the devices.
    """
    sizes = tuple(shape.get(axis, 1) for axis in sharding.AXES)
    made = math.prod(sizes)
    if made != len(devices):
        raise ValueError(
            f"got a mesh of {dict(zip(sharding.AXES, sizes))} = {made} devices, "
            f"expected the {len(devices)} of the topology; change one of them"
        )
    types = (AxisType.Auto,) * len(sizes)
    return jax.make_mesh(sizes, sharding.AXES, axis_types=types, devices=devices)


def compile_step(step, *abstract, devices: Mesh) -> jax.stages.Compiled:
    """A jitted step compiled for the devices on which its arguments are placed.

    Args:
        step: of `jax.jit`.
        abstract: trees of ShapeDtypeStructs with shardings on `devices`.
    Raises: DoesNotFit where the compiler itself runs out of a device's memory.
    """
    try:
        return step.lower(*abstract).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        kind = devices.devices.flat[0].device_kind
        raise DoesNotFit(_too_large(str(error).splitlines()[0], kind)) from error


def report(
    compiled: jax.stages.Compiled, *, devices: Mesh, model: float, executed: float
) -> Report:
    """What a compiled step needs.

    Args:
        devices: the mesh it was compiled for.
        model, executed: FLOPs of a step on all devices, see `flops`.
    """
    memory = compiled.memory_analysis()
    costs = compiled.cost_analysis()
    return Report(
        kind=devices.devices.flat[0].device_kind,
        count=devices.size,
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes,
        shared=memory.alias_size_in_bytes,
        temporary=memory.temp_size_in_bytes,
        code=memory.generated_code_size_in_bytes,
        collectives=hlo.collectives(compiled.as_text(), devices.size),
        model=model,
        executed=executed,
        counted=costs.get("flops", 0.0),
    )


def _device(kind: str) -> flops.Device:
    peak = flops.device(kind)
    if peak is None:
        raise ValueError(
            f"got devices of kind {kind!r}, expected one of {', '.join(flops.DEVICES)};"
            " add its peaks to flops.DEVICES"
        )
    return peak


def _too_large(needs: str, kind: str) -> str:
    return (
        f"the step does not fit: {needs}, and a {kind} has "
        f"{_device(kind).memory / GIB:.2f} GiB; take more devices (fsdp, sequence), "
        "fewer rows a device, more accumulation, or remat full"
    )
