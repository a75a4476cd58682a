"""Programs compiled for other devices: their collectives, memory and projections."""

import importlib.util
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from qwen3tts_jax import sharding
from qwen3tts_jax.training.aot import compile, flops, hlo

# What compilers write: XLA for TPU, then for CPU and GPU.
TPU_TEXT = """
HloModule jit_step, is_scheduled=true

%fused.1 (p0: bf16[4,8]) -> bf16[64,8] {
  %p0 = bf16[4,8]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %all-gather.1 = bf16[64,8]{1,0:T(8,128)(2,1)S(1)} all-gather(%p0), \
channel_id=7, replica_groups=mesh['axis_0'=16,'axis_1'=2] {'axis_0'}, dimensions={0}
}

%fused.2 (p1: bf16[4,8]) -> bf16[64,8] {
  %p1 = bf16[4,8]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %all-gather.2 = bf16[64,8]{1,0:T(8,128)(2,1)S(1)} all-gather(%p1), \
channel_id=7, replica_groups=mesh['axis_0'=16,'axis_1'=2] {'axis_0'}, dimensions={0}
}

%cond (state: (s32[], bf16[4,8])) -> pred[] {
  %limit = s32[]{:T(128)} constant(28)
  %i = s32[]{:T(128)} get-tuple-element(%state), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %limit), direction=LT
}

%body (state.1: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %state.1 = (s32[]{:T(128)}, bf16[4,8]{1,0}) parameter(0)
  %f1 = bf16[64,8]{1,0} fusion(%x), kind=kCustom, calls=%fused.1
  %f2 = bf16[64,8]{1,0} fusion(%x), kind=kCustom, calls=%fused.2
  %ar = (f32[10]{0}, bf16[6]{0}) all-reduce(%a, %b), channel_id=9, \
replica_groups=mesh['axis_0'=16,'axis_1'=2], device_ids=([2,16]T(1,0)) \
{'axis_0','axis_1'}, to_apply=%add
}

ENTRY %main (arg: bf16[4,8]) -> f32[] {
  %w = (s32[]{:T(128)}, bf16[4,8]{1,0}) while(%t), condition=%cond, body=%body
  %rs = f32[5]{0} reduce-scatter(%g), channel_id=11, \
replica_groups=[8,4]<=[32], dimensions={0}, to_apply=%add
  %cp = (f32[100]{0}, f32[100]{0}, u32[]{:S(2)}, u32[]{:S(2)}) \
collective-permute-start(%g), channel_id=12, source_target_pairs={{0,1},{1,0}}
  %alone = f32[5]{0} all-reduce(%g), channel_id=13, \
replica_groups={{0},{1}}, to_apply=%add
}
""".replace("\\\n", "")


def test_collectives_count_loops_and_one_channel_once():
    found = hlo.collectives(TPU_TEXT, 32)
    assert {(c.kind, c.size, c.group, c.times) for c in found} == {
        ("all-gather", 64 * 8 * 2, 16, 28),  # two fusions, one channel
        ("all-reduce", 10 * 4 + 6 * 2, 32, 28),
        ("reduce-scatter", 20, 4, 1),
        ("collective-permute", 404, 2, 1),
    }


def test_bytes_sent_are_those_of_rings():
    def sent(kind, group):
        return hlo.Collective(kind, 1000, group, 3).sent

    assert sent("all-gather", 4) == 3 * 750
    assert sent("all-to-all", 4) == 3 * 750
    assert sent("all-reduce", 4) == 3 * 1500
    assert sent("reduce-scatter", 4) == 3 * 3000  # its operand is 4,000
    assert sent("collective-permute", 2) == 3 * 1000


COMPILED = """
import functools
import jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from qwen3tts_jax import sharding
from qwen3tts_jax.training import fsdp
from qwen3tts_jax.training.aot import compile
from qwen3tts_jax.training.aot import hlo

mesh = sharding.make_mesh(fsdp=4)
place = lambda *axes: NamedSharding(mesh, PartitionSpec(*axes))
gather = fsdp.Gather(mesh, "bfloat16")

def step(kernels, x):
    def loss(kernels):
        def layer(x, kernel):
            return jnp.tanh(x @ gather(kernel)["attention"]["query"]["kernel"]), None
        y, _ = jax.lax.scan(layer, x, kernels)
        return jnp.sum(y.astype(jnp.float32))
    return jax.grad(loss)(kernels)

kernel = jax.ShapeDtypeStruct((6, 64, 64), jnp.float32, sharding=place(None, "fsdp"))
kernels = {"attention": {"query": {"kernel": kernel}}}
x = jax.ShapeDtypeStruct((8, 64), jnp.bfloat16, sharding=place("fsdp"))
step = jax.jit(step, out_shardings=jax.tree.map(lambda k: k.sharding, kernels))
compiled = compile.compile_step(step, kernels, x, devices=mesh)
made = compile.report(compiled, devices=mesh, model=1.0, executed=2.0)
for c in made.collectives:
    print(c.kind, c.size, c.group, c.times)
print("memory", made.memory, "arguments", made.arguments)
"""


def test_a_compiled_function_tells_what_it_gathers():
    """Six layers cut over four CPUs, each gathered in the dtype of the computation."""
    flags = os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=4"
    env = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILED], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    gathers = [line.split() for line in lines if line.startswith("all-gather")]
    assert gathers and {(g, t) for _, _, g, t in gathers} == {("4", "6")}, lines
    arguments = 6 * 64 * 64 * 4 // 4 + 8 * 64 * 2 // 4
    assert f"arguments {arguments}" in lines[-1]


def made(**fields) -> compile.Report:
    plain = dict(
        kind="TPU v5 lite",
        count=4,
        arguments=2 * 2**30,
        outputs=2 * 2**30,
        shared=2 * 2**30,
        temporary=3 * 2**30,
        code=0,
        collectives=(hlo.Collective("all-gather", 10**9, 4, 2),),
        model=3 * 197e12,
        executed=4 * 197e12,
        counted=1e9,
    )
    return compile.Report(**plain | fields)


def test_the_longest_of_three_limits_the_projection():
    report = made()
    assert report.seconds() == pytest.approx(
        dict(
            compute=1.0,
            memory=(10 * 2**30 + 2 * 2 * 10**9) / 819e9,
            links=2 * 0.75e9 / 200e9,
        )
    )
    assert report.utilisation() == pytest.approx(0.75)
    slow = made(collectives=(hlo.Collective("all-reduce", 10**11, 4, 4),))
    assert slow.seconds()["links"] == pytest.approx(3.0)
    assert slow.utilisation() == pytest.approx(0.25)
    assert "at most 25.0%, by links" in slow.text()


def test_what_does_not_fit_is_an_error():
    made().check()
    assert "5.00 GiB of 15.75" in made().text()
    with pytest.raises(
        compile.DoesNotFit, match="18.00 GiB, and a TPU v5 lite has 15.75"
    ):
        made(temporary=16 * 2**30).check()
    with pytest.raises(ValueError, match="add its peaks to flops.DEVICES"):
        made(kind="abacus").check()


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs the extra tpu"
)
def test_a_step_compiles_for_tpus_that_are_not_here():
    """Packed attention by the TPU kernels, and an array that no TPU can hold."""
    from qwen3tts_jax.nn import packed_attention

    mesh = compile.mesh(compile.devices("v5e:2x2"), fsdp=2, sequence=2)
    rows = jax.NamedSharding(mesh, PartitionSpec(("data", "fsdp"), "sequence"))
    heads = jax.ShapeDtypeStruct((2, 512, 4, 128), jnp.bfloat16, sharding=rows)
    segment = jax.ShapeDtypeStruct((2, 512), jnp.int32, sharding=rows)
    step = jax.jit(
        lambda q, s: packed_attention.attend(
            q, q, q, s, implementation="splash", mesh=mesh
        )
    )
    compiled = compile.compile_step(step, heads, segment, devices=mesh)
    report = compile.report(compiled, devices=mesh, model=1e9, executed=1e9)
    report.check()
    assert any(c.kind == "all-gather" and c.group == 2 for c in report.collectives)
    huge = jax.ShapeDtypeStruct((2**17, 2**17), jnp.float32, sharding=rows)
    with pytest.raises(compile.DoesNotFit, match="has 15.75 GiB"):
        compile.compile_step(jax.jit(lambda x: x @ x), huge, devices=mesh)


def test_a_mesh_is_of_all_its_devices_or_says_why_not():
    assert set(sharding.AXES) >= {"fsdp", "sequence"}
    if importlib.util.find_spec("libtpu") is None:
        match = "pip install 'qwen3tts_jax\\[tpu\\]'"
    else:
        match = "expected the 4 of v5e:2x2"
    with pytest.raises(ValueError, match=match):
        compile.mesh(compile.devices("v5e:2x2"), fsdp=3)


def test_devices_are_known_by_the_names_that_jax_gives_them():
    assert flops.device("TPU v5 lite").flops == 197e12
    assert flops.device(jax.devices("cpu")[0].device_kind) is None
