"""A bag of named arrays: one safetensors file with JSON notes in its metadata."""

import json
import pathlib

import numpy as np
import torch
from safetensors.numpy import save_file

NEAR_TIE = 1e-3


class Golden:
    def __init__(self):
        self.arrays, self.notes = {}, {}

    def put(self, key: str, value, dtype=None) -> None:
        """Stores float64 as float32, int64 as int32, unless told otherwise."""
        if isinstance(value, torch.Tensor):
            value = value.detach().numpy()
        value = np.asarray(value)
        smaller = {"float64": np.float32, "int64": np.int32, "bool": np.uint8}
        kept = value.astype(dtype or smaller.get(value.dtype.name, value.dtype))
        if kept.dtype.kind in "iu" and not np.array_equal(kept, value):
            raise ValueError(f"got {key} with values that {kept.dtype} cannot hold")
        if key in self.arrays:
            raise ValueError(f"got a second array {key}")
        self.arrays[key] = np.array(kept, order="C")

    def put_codes(self, key: str, codes) -> None:
        self.put(key, codes, np.int16)

    def put_near_ties(self, key: str, margins) -> None:
        """Where the best choice was hardly better than the second, and by how much.

        key/near_ties: int32 [n, axes of margins]; key/near_tie_margins: float16 [n].
        """
        margins = np.asarray(margins)
        where = np.argwhere(margins < NEAR_TIE)
        self.put(f"{key}/near_ties", where, np.int32)
        self.put(f"{key}/near_tie_margins", margins[tuple(where.T)], np.float16)

    def note(self, key: str, value) -> None:
        self.notes[key] = value

    def save(self, path: pathlib.Path) -> None:
        notes = json.dumps(self.notes, ensure_ascii=False)
        save_file(self.arrays, path, metadata={"notes": notes})
