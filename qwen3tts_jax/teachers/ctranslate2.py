"""The weights in the model.bin of a CTranslate2 directory, by numpy alone.

Source: CTranslate2, python/ctranslate2/specs/model_spec.py (ModelSpec._serialize).
"""

import dataclasses
import pathlib
import struct

import numpy as np

VERSION = 6  # of the binary layout: that of CTranslate2 4
BFLOAT16 = 5
DTYPES = {0: "<f4", 1: "<i1", 2: "<i2", 3: "<i4", 4: "<f2", BFLOAT16: "<u2"}


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """What one file holds.

    Attributes:
        spec: the name of its layout, such as "WhisperSpec".
        revision: of that layout.
        variables: name -> array as stored, aliases included; bfloat16 as float32.
    """

    spec: str
    revision: int
    variables: dict[str, np.ndarray]


def read(path: pathlib.Path) -> Model:
    """Map a file into memory; arrays are read when they are used.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is of another version, or not whole, or something else.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"got {str(path)!r}, expected the model.bin of a CTranslate2 directory"
        )
    if not path.stat().st_size:
        raise ValueError(f"{path} is empty; copy it again")
    file = _File(path)
    version = file.number("I")
    if version != VERSION:
        raise ValueError(
            f"{path}: got binary version {version}, expected {VERSION}; convert the "
            "model with CTranslate2 4"
        )
    spec, revision = file.text(), file.number("I")
    variables = dict(file.variable() for _ in range(file.number("I")))
    for _ in range(file.number("I")):
        alias, name = file.text(), file.text()
        if name not in variables:
            raise file.broken(f"{alias!r} stands for {name!r}, which it has not")
        variables[alias] = variables[name]
    if file.position != len(file.data):
        raise file.broken(f"{len(file.data) - file.position} bytes are left over")
    return Model(spec, revision, variables)


class _File:
    """The bytes of a file and how far they have been read."""

    def __init__(self, path: pathlib.Path):
        self.path, self.position = path, 0
        self.data = np.memmap(path, np.uint8, "r")

    def broken(self, why: str) -> ValueError:
        return ValueError(f"{self.path} is no whole CTranslate2 file: {why}")

    def take(self, count: int) -> np.ndarray:
        taken = self.data[self.position : self.position + count]
        if len(taken) < count:
            raise self.broken(f"it ends after {len(self.data)} bytes, inside a field")
        self.position += count
        return taken

    def number(self, kind: str) -> int:
        return struct.unpack(f"<{kind}", self.take(struct.calcsize(kind)).tobytes())[0]

    def text(self) -> str:
        raw = self.take(self.number("H")).tobytes()
        try:
            return raw.rstrip(b"\0").decode()
        except UnicodeDecodeError as error:
            raise self.broken(f"a name is not UTF-8 ({error})") from error

    def variable(self) -> tuple[str, np.ndarray]:
        name = self.text()
        shape = tuple(self.number("I") for _ in range(self.number("B")))
        kind, size = self.number("B"), self.number("I")
        if kind not in DTYPES:
            raise self.broken(f"{name!r} has the unknown type {kind}")
        value = self.take(size)
        dtype = np.dtype(DTYPES[kind])
        # Python's integers: a damaged shape must not overflow
        expected = dtype.itemsize
        for dim in shape:
            expected *= dim
        if size != expected:
            raise self.broken(
                f"{name!r} has {size} bytes, expected {expected} for {list(shape)}"
            )
        value = value.view(dtype).reshape(shape)
        return name, _widened(value) if kind == BFLOAT16 else value


def _widened(bits: np.ndarray) -> np.ndarray:
    """Float32 of the upper halves of its bits."""
    return (bits.astype(np.uint32) << 16).view(np.float32)
