"""Checkpoints come back bit for bit, on any mesh; a failed save costs nothing else."""

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx, struct

from qwen3tts_jax.nn import layers
from qwen3tts_jax.training import checkpointing


@struct.dataclass
class State:
    step: jax.Array
    optimizer: optax.OptState
    key: jax.Array
    ema: dict


def make_items(seed: int = 0) -> dict:
    """Parameters of several dtypes, moments, an integer, keys, an empty dict."""
    names = jax.random.split(jax.random.key(seed), 3)
    params = {
        "talker.x.kernel": jax.random.normal(names[0], (4, 6)),
        "talker.x.scale": jax.random.normal(names[1], (5,)).astype(jnp.bfloat16),
    }
    moments = optax.adamw(1e-3).init(params)
    moments = jax.tree.map(lambda x: x + jnp.ones_like(x) * 3, moments)
    state = State(jnp.int32(7), moments, jax.random.key(seed), {})
    return dict(params=params, rest=state)


def structs(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
        assert a.dtype == b.dtype
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def opened(folder, **options) -> checkpointing.Checkpoints:
    return checkpointing.Checkpoints(folder / "run", **options)


def steps(folder) -> list[int]:
    """What is on the disk."""
    return sorted(int(path.name) for path in (folder / "run").iterdir())


# -------------------------------------------------------------------- round trips


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_state_comes_back_bit_for_bit(tmp_path, asynchronous):
    items, position = make_items(), dict(next_batch=8, plan="abc", rates=[1.5, None])
    saving = opened(tmp_path, asynchronous=asynchronous)
    saving.save(7, items, data=position)
    saving.close()
    # another manager, as in another process, knows only what is on the disk
    found, data, step = opened(tmp_path).restore(structs(items))
    assert (data, step) == (position, 7)
    assert_same(found, items)


def test_modules_and_keys_of_another_kind_come_back(tmp_path):
    blocks = nnx.List([layers.SwiGLU(2, 3, rngs=nnx.Rngs(i)) for i in range(2)])
    items = dict(
        blocks=blocks,
        moments=optax.adam(1e-3).init(blocks),
        keys=jax.random.split(jax.random.key(2, impl="rbg"), 3),
    )
    saving = opened(tmp_path)
    saving.save(1, items, data={})
    saving.close()
    found, _, _ = opened(tmp_path).restore(structs(items))
    assert_same(found, items)
    assert jax.random.key_impl(found["keys"]) == jax.random.key_impl(items["keys"])
    x = jnp.ones((1, 2))
    np.testing.assert_array_equal(found["blocks"][1](x), blocks[1](x))


def test_one_item_can_be_restored_alone(tmp_path):
    """As when a stage takes the parameters of the one before."""
    saving = opened(tmp_path)
    for step in (1, 2):
        saving.save(step, make_items(step), data={})
    saving.close()
    wanted = dict(params=structs(make_items()["params"]))
    newest, _, step = opened(tmp_path).restore(wanted)
    assert step == 2
    assert_same(newest, dict(params=make_items(2)["params"]))
    older, _, step = opened(tmp_path).restore(wanted, step=1)
    assert step == 1
    assert_same(older, dict(params=make_items(1)["params"]))


def test_arrays_may_be_donated_as_soon_as_save_returns(tmp_path):
    """The next training step overwrites them while the writing goes on."""
    x = jnp.arange(1_000_000, dtype=jnp.float32)
    expected = np.array(x)
    saving = opened(tmp_path)
    saving.save(1, dict(params={"x": x}), data={})
    jax.jit(lambda x: x * 0 - 1, donate_argnums=0)(x).block_until_ready()
    saving.close()
    found, _, _ = opened(tmp_path).restore(
        dict(params={"x": jax.ShapeDtypeStruct(expected.shape, jnp.float32)})
    )
    np.testing.assert_array_equal(np.asarray(found["params"]["x"]), expected)


ELASTIC = """
import sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from qwen3tts_jax import sharding
from qwen3tts_jax.training import checkpointing

x = np.arange(48, dtype=np.float32).reshape(8, 6)
def place(mesh, spec):
    return NamedSharding(mesh, spec), NamedSharding(mesh, P())
one = place(sharding.make_mesh(fsdp=4), P("fsdp", None))
two = place(sharding.make_mesh(data=2, fsdp=1, tensor=2), P(None, "tensor"))
items = dict(params={"x": jax.device_put(x, one[0])},
             rest={"key": jax.device_put(jax.random.key(3), one[1])})
saving = checkpointing.Checkpoints(sys.argv[1])
saving.save(1, items, data={})
saving.close()
for where in (one, two):
    kind = items["rest"]["key"].dtype
    wanted = dict(
        params={"x": jax.ShapeDtypeStruct((8, 6), "float32", sharding=where[0])},
        rest={"key": jax.ShapeDtypeStruct((), kind, sharding=where[1])})
    found, _, _ = checkpointing.Checkpoints(sys.argv[1]).restore(wanted)
    got = found["params"]["x"]
    assert got.sharding.is_equivalent_to(where[0], 2), got.sharding
    assert len(found["rest"]["key"].sharding.device_set) == 4
    np.testing.assert_array_equal(np.asarray(got), x)
    print(got.sharding.shard_shape(got.shape))
"""


def test_another_mesh_and_another_number_of_devices(tmp_path):
    flags = os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=4"
    done = subprocess.run(
        [sys.executable, "-c", ELASTIC, str(tmp_path / "run")],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines() == ["(2, 6)", "(8, 3)"]
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    key = jax.random.key(3)
    wanted = dict(
        params={"x": jax.ShapeDtypeStruct((8, 6), "float32", sharding=place)},
        rest={"key": jax.ShapeDtypeStruct((), key.dtype, sharding=place)},
    )
    found, _, _ = opened(tmp_path).restore(wanted)
    expected = np.arange(48, dtype=np.float32).reshape(8, 6)
    assert_same(found, dict(params={"x": expected}, rest={"key": key}))


# -------------------------------------------------------------------- which are kept


def test_the_last_and_the_best_are_kept_over_a_restart(tmp_path):
    def train(metrics: dict):
        saving = opened(tmp_path, keep_last=2, keep_best=1)
        for step, metric in metrics.items():
            saving.save(step, dict(params={"x": jnp.ones(2)}), data={}, metric=metric)
        saving.close()
        return steps(tmp_path), saving.best(), saving.latest()

    assert train({1: 0.9, 2: 0.2, 3: 0.5, 4: 0.4}) == ([2, 3, 4], 2, 4)
    assert train({5: 0.3, 6: float("nan"), 7: None}) == ([2, 6, 7], 2, 7)
    assert train({8: 0.1, 9: 0.6, 10: 0.7}) == ([8, 9, 10], 8, 10)


def test_without_metrics_the_best_is_the_newest(tmp_path):
    saving = opened(tmp_path, keep_last=2)
    for step in (1, 2, 3):
        saving.save(step, dict(params={"x": jnp.ones(2)}), data={})
    saving.close()
    assert (steps(tmp_path), opened(tmp_path).best()) == ([2, 3], 3)


def test_none_kept_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="keep_last 0, expected at least 1"):
        opened(tmp_path, keep_last=0)


# ------------------------------------------------------------------- failed saves


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_failed_save_is_one_error_and_loses_nothing(
    tmp_path, asynchronous, capfd, caplog
):
    """The system refuses to write more: files may not grow over 100 kB."""
    saving = opened(tmp_path, keep_last=1, asynchronous=asynchronous)
    items = make_items()
    saving.save(1, items, data=dict(next_batch=1))
    saving.wait()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    large = dict(params={"x": jax.random.normal(jax.random.key(0), (1_000_000,))})
    capfd.readouterr()
    caplog.clear()
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(checkpointing.SaveError) as caught:
            saving.save(2, large, data={})
            saving.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    said = str(caught.value)
    assert "step 2" in said and str(tmp_path / "run") in said
    assert os.strerror(errno.EFBIG) in said and "step 1 is whole" in said
    assert "Traceback" not in capfd.readouterr().err + caplog.text
    assert steps(tmp_path) == [1]  # nor does the failed one keep its space
    found, data, step = opened(tmp_path).restore(structs(items))
    assert (data, step) == (dict(next_batch=1), 1)
    assert_same(found, items)
    saving.save(3, items, data={})  # once there is space
    saving.close()
    assert steps(tmp_path) == [3]


# what TensorStore says, and what Python does
FULL = (
    ValueError(
        'RESOURCE_EXHAUSTED: Error writing "a/0": Failed to write 69042176 bytes to '
        "file 11: No space left on device [os_error_code='28']"
    ),
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)),
)


@pytest.mark.parametrize("error", FULL, ids=["tensorstore", "python", "quota"])
def test_a_full_disk_is_named(tmp_path, monkeypatch, error):
    def fail(*args, **kwargs):
        raise error

    saving = opened(tmp_path)
    monkeypatch.setattr(ocp.CheckpointManager, "save", fail)
    with pytest.raises(OSError, match="No space|quota") as caught:
        saving.save(2, make_items(), data={})
    assert str(caught.value).endswith(
        "of those before, there is none: free disk space, then give the same command "
        "again"
    )
    assert "\n" not in str(caught.value)


KILLED = """
import os, signal, sys
import jax.numpy as jnp
from qwen3tts_jax.training import checkpointing

rename = os.rename
def die(source, *args, **kwargs):
    if os.path.basename(source).startswith("2."):
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(source, *args, **kwargs)
os.rename = os.replace = die
saving = checkpointing.Checkpoints(sys.argv[1])
for step in (1, 2):
    saving.save(step, dict(params={"x": jnp.full(3, step)}), data={})
saving.wait()
"""


def test_a_killed_save_is_never_taken_for_a_checkpoint(tmp_path):
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "run")])
    assert done.returncode == -signal.SIGKILL
    left = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert len(left) == 2 and left[1].startswith("2.")  # all of it but its last name
    saving = opened(tmp_path)
    assert saving.latest() == 1
    items = dict(params={"x": jnp.full(3, 1)})
    found, _, step = saving.restore(structs(items))
    assert step == 1
    assert_same(found, items)
    assert len(list((tmp_path / "run").iterdir())) == 2  # reading changes nothing
    saving.save(3, items, data={})
    saving.close()
    assert steps(tmp_path) == [1, 3]


# ----------------------------------------------------------- what cannot be restored


def test_every_difference_is_listed(tmp_path):
    saving = opened(tmp_path)
    saving.save(4, make_items(), data={})
    saving.close()
    wanted = structs(make_items())
    wanted["params"] = {
        "talker.x.kernel": jax.ShapeDtypeStruct((4, 7), jnp.float32),
        "talker.y.scale": jax.ShapeDtypeStruct((5,), jnp.float32),
    }
    wanted["other"] = {"x": jax.ShapeDtypeStruct((), jnp.float32)}
    with pytest.raises(ValueError) as caught:
        opened(tmp_path).restore(wanted)
    assert str(caught.value).splitlines()[1:] == [
        "  missing: params talker.y.scale",
        "  unexpected: params talker.x.scale",
        "  other: params talker.x.kernel: got float32 (4, 6), expected float32 (4, 7)",
        "  missing: all of other",
    ]
    narrow = dict(params=structs(make_items()["params"]))
    narrow["params"]["talker.x.kernel"] = jax.ShapeDtypeStruct((4, 6), jnp.bfloat16)
    with pytest.raises(ValueError, match="got float32.*expected bfloat16"):
        opened(tmp_path).restore(narrow)  # never a silent rounding


def test_a_long_list_of_differences_is_cut(tmp_path):
    saving = opened(tmp_path)
    saving.save(1, dict(params={"x": jnp.ones(2)}), data={})
    saving.close()
    wanted = {f"y{i:02d}": jax.ShapeDtypeStruct((2,), jnp.float32) for i in range(30)}
    with pytest.raises(ValueError, match=r"\(31 problems\)") as caught:
        opened(tmp_path).restore(dict(params=wanted))
    assert str(caught.value).endswith("missing: params y19\n  and 11 more")


def damage_weights(step) -> None:
    files = [p for p in (step / "params").rglob("*") if p.parent.name == "d"]
    assert files
    for path in files:
        path.write_bytes(path.read_bytes()[:5])


def damage_structure(step) -> None:
    (step / "params" / "_METADATA").write_text("{")


def damage_position(step) -> None:
    shutil.rmtree(step / "data")


@pytest.mark.parametrize("damage", [damage_weights, damage_structure, damage_position])
def test_a_damaged_checkpoint_is_one_error_that_names_another(tmp_path, damage):
    saving, items = opened(tmp_path), make_items()
    for step in (1, 2):
        saving.save(step, items, data={})
    saving.close()
    damage(tmp_path / "run" / "2")
    with pytest.raises(ValueError, match="step 2 .*cannot be read.* one of step 1$"):
        opened(tmp_path).restore(structs(items))
    shutil.rmtree(tmp_path / "run" / "2")  # as it says
    found, _, step = opened(tmp_path).restore(structs(items))
    assert step == 1
    assert_same(found, items)


def test_no_checkpoint_is_an_error_and_makes_no_directory(tmp_path):
    reading = opened(tmp_path)
    assert reading.latest() is None and reading.best() is None
    with pytest.raises(FileNotFoundError, match="has no checkpoint; give the dir"):
        reading.restore({})
    assert not (tmp_path / "run").exists()
    reading.save(1, make_items(), data={})
    reading.wait()
    with pytest.raises(FileNotFoundError, match="has none of step 5"):
        reading.restore({}, step=5)
