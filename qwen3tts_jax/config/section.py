"""Strict reading of a config.json: what is missing or unusable, all in one error."""

from typing import Any


class Section:
    """One JSON object of a config.json; notes what is missing or unusable."""

    def __init__(self, values: Any, path: str, problems: list[str] | None = None):
        self.problems = [] if problems is None else problems
        self.path = path
        if not isinstance(values, dict):
            self.problems.append(f"{path}: got {values!r}, expected an object")
            values = {}
        self.values = values

    def need(self, key: str, kind: type) -> Any:
        """The value of `key`, or an empty `kind` after noting what is wrong with it."""
        value = self.values.get(key)
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
            return value
        got = f"got {value!r}" if key in self.values else "missing"
        self.problems.append(f"{self.path}.{key}: {got}, expected {kind.__name__}")
        return kind()

    def default(self, key: str, value: Any) -> Any:
        """The value of `key`, or `value` where the released file leaves it out."""
        return self.need(key, type(value)) if key in self.values else value

    def only(self, key: str, *allowed: Any) -> None:
        """Note `key` if it has a value that is not implemented."""
        value = self.values.get(key)
        if key in self.values and value not in allowed:
            expected = " or ".join(repr(a) for a in allowed)
            self.problems.append(
                f"{self.path}.{key}: got {value!r}, expected {expected}"
            )

    def ints(self, key: str) -> tuple[int, ...]:
        values = self.need(key, list)
        if all(isinstance(v, int) and v > 0 for v in values):
            return tuple(values)
        self.problems.append(
            f"{self.path}.{key}: got {values!r}, expected a list of positive integers"
        )
        return ()

    def layers(self, key: str) -> tuple[int, ...]:
        """A list of layer numbers, from 0; it may be empty."""
        values = self.need(key, list)
        if all(isinstance(v, int) and v >= 0 for v in values):
            return tuple(values)
        self.problems.append(
            f"{self.path}.{key}: got {values!r}, expected a list of layer numbers"
        )
        return ()

    def lists(self, key: str) -> tuple[tuple[int, ...], ...]:
        """A list of lists of positive integers."""
        parts = self.need(key, list)
        one = [Section({key: part}, self.path, self.problems) for part in parts]
        return tuple(section.ints(key) for section in one)

    def table(self, key: str) -> tuple[tuple[str, Any], ...]:
        return tuple(sorted(self.need(key, dict).items()))

    def section(self, key: str) -> "Section":
        if key not in self.values:
            self.problems.append(f"{self.path}.{key}: missing, expected an object")
            return Section({}, f"{self.path}.{key}", [])  # one note is enough
        return Section(self.values[key], f"{self.path}.{key}", self.problems)

    def finish(self) -> None:
        if self.problems:
            raise ValueError(
                "config.json does not describe a model this package can build:\n  "
                + "\n  ".join(self.problems)
                + "\nUse the config.json of an official Qwen3-TTS repository."
            )


class _FromHF:
    """Gives a dataclass with `read(section)` the strict `from_hf(dict)`."""

    @classmethod
    def from_hf(cls, values: dict):
        """The configuration in a parsed config.json (or the part of it named `cls`).

        Raises: ValueError listing every missing or unusable field.
        """
        section = Section(values, "config.json")
        config = cls.read(section)
        section.finish()
        return config
