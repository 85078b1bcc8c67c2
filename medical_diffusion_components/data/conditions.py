"""What a generator can be asked for: declared variables, and a case's values of them as numbers and back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["Conditions", "Variable", "category_text"]

Value = float | str | None  # of a variable: a number, a category, or missing


class Variable(NamedTuple):
    """One condition: continuous with a range, or a category with its values."""

    name: str
    low: float
    high: float
    unit: str
    values: tuple[str, ...]  # none: continuous

    def described(self) -> str:
        """For people: ``age 55 to 90 years``, ``sex F or M``."""
        if self.values:
            return f"{self.name} {' or '.join(self.values)}"
        return f"{self.name} {self.low:g} to {self.high:g} {self.unit}".rstrip()


class Conditions:
    """The conditions that a training declares, each with one place in a vector.

    Continuous values are scaled from their range to [-1, 1], categories are their index, and what is missing is NaN. Places
    follow the names' alphabetical order, so that a declaration means the same however a file orders it.

        >>> conditions = Conditions({"age": {"range": [50, 90], "unit": "years"}, "sex": {"values": ["F", "M"]}})
        >>> conditions.encode({"age": 60, "sex": "M"}, "volume 0")
        tensor([-0.5000,  1.0000])

    Args:
        declared: name -> ``{range: [low, high], unit: text}`` (the unit may be left out) or ``{values: [F, M]}``; None, or
            empty, for no conditions.

    Raises:
        ValueError: a declaration of another form.
    """

    def __init__(self, declared: Mapping[str, Any] | None = None) -> None:
        if declared is not None and not isinstance(declared, Mapping):
            raise ValueError(f"expected conditions as a mapping of names, or null, got {declared!r}")
        self.variables = [_variable(name, (declared or {})[name]) for name in sorted(declared or {}, key=str)]
        self.names = [variable.name for variable in self.variables]

    def __bool__(self) -> bool:
        return bool(self.variables)

    def described(self) -> str:
        """For people: ``age 55 to 90 years; sex F or M``; empty without conditions."""
        return "; ".join(variable.described() for variable in self.variables)

    def encode(self, values: Mapping[str, Any], where: str, extrapolate: bool = False) -> Tensor:
        """A vector (V,) float32, one number per declared variable.

        Args:
            values: name -> number, text or None; what is absent counts as None, missing.
            where: the case or the setting that they come from, for errors.
            extrapolate: accept continuous values outside the range.

        Raises:
            ValueError: a name that is not declared, a value of the wrong type, one that is not finite, out of range, or no
                declared category.
        """
        if unknown := [str(name) for name in values if name not in self.names]:
            raise ValueError(
                f"{where}: {unknown[0]} is no declared condition; expected {', '.join(self.names) or 'none'}"
            )
        numbers = [_number(variable, values.get(variable.name), where, extrapolate) for variable in self.variables]
        return torch.tensor(numbers, dtype=torch.float32)

    def decode(self, vector: Tensor) -> dict[str, Value]:
        """What :meth:`encode` was given, numbers rounded to six significant digits."""
        if vector.shape != (len(self.variables),):
            raise ValueError(f"expected a vector of {len(self.variables)} conditions, got shape {list(vector.shape)}")
        found: dict[str, Value] = {}
        for variable, number in zip(self.variables, vector.tolist()):
            if math.isnan(number):
                found[variable.name] = None
            elif variable.values:
                found[variable.name] = variable.values[int(number)]
            else:
                found[variable.name] = float(f"{variable.low + (number + 1) / 2 * (variable.high - variable.low):.6g}")
        return found

    def extrapolated(self, vector: Tensor) -> list[str]:
        """Names of the continuous variables whose value in a vector (V,) is outside the range that was trained on."""
        beyond = vector.abs() > 1 + 1e-6  # False where missing
        return [variable.name for variable, out in zip(self.variables, beyond) if out and not variable.values]

    def of_cases(self, cases: Sequence[Mapping[str, Any]]) -> list[Tensor]:
        """A vector for each case from its entry ``conditions``; names in it that are not declared are left aside.

        Raises:
            ValueError: a declared variable that no case has a value of, or a value that :meth:`encode` refuses.
        """
        tables = [case.get("conditions") or {} for case in cases]
        for name in self.names:
            if all(table.get(name) is None for table in tables):
                there = sorted({key for table in tables for key, value in table.items() if value is not None})
                raise ValueError(
                    f"no case has a value of the declared condition {name}; the cases have {', '.join(there) or 'none'}: "
                    'expected "conditions": {...} in the entries of dataset.json'
                )
        chosen = [{name: table[name] for name in self.names if name in table} for table in tables]
        return [self.encode(values, f"case {case['case_id']}") for values, case in zip(chosen, cases)]


def _variable(name: Any, declared: Any) -> Variable:
    where = f"condition {name}"
    if not isinstance(name, str) or not name.isidentifier():
        raise ValueError(f"{where}: expected a name of letters, digits and underscores")
    keys = set(declared) if isinstance(declared, Mapping) else set()
    if keys == {"values"}:
        return Variable(name, 0.0, 0.0, "", _categories(where, declared["values"]))
    if keys in ({"range"}, {"range", "unit"}):
        limits = declared["range"]
        numbers = isinstance(limits, Sequence) and all(map(_is_number, limits))
        if not numbers or len(limits) != 2 or not -math.inf < limits[0] < limits[1] < math.inf:
            raise ValueError(f"{where}: expected a range of two ascending numbers, got {limits!r}")
        return Variable(name, float(limits[0]), float(limits[1]), str(declared.get("unit", "")), ())
    raise ValueError(
        f"{where}: expected {{range: [low, high], unit: text}} or {{values: [one, other]}}, got {declared!r}"
    )


def _categories(where: str, values: Any) -> tuple[str, ...]:
    texts = [category_text(value) for value in values] if isinstance(values, list | tuple) else []
    if len(set(texts)) < 2 or len(set(texts)) < len(texts) or None in texts:
        raise ValueError(
            f"{where}: expected a list of two or more different values, text or whole numbers, got {values!r}"
            " (YAML reads yes, no, on and off as true or false unless they are quoted)"
        )
    return tuple(str(text) for text in texts)


def category_text(value: Any) -> str | None:
    """A category as text: itself, or a whole number's digits; None for anything else."""
    if _is_number(value) and float(value).is_integer():
        return str(int(value))
    return value if isinstance(value, str) and value else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(variable: Variable, value: Any, where: str, extrapolate: bool) -> float:
    if value is None:
        return math.nan
    if variable.values:
        text = category_text(value)
        if text not in variable.values:
            raise ValueError(f"{where}: expected {variable.name} to be {' or '.join(variable.values)}, got {value!r}")
        return float(variable.values.index(text))
    if not _is_number(value):
        raise ValueError(f"{where}: expected a number for {variable.name}, got {value!r}")
    if not math.isfinite(value):
        raise ValueError(f"{where}: expected a finite number for {variable.name}, got {value}; missing is null")
    if not variable.low <= value <= variable.high and not extrapolate:
        raise ValueError(f"{where}: expected {variable.described()}, got {value:g}, which is out of range")
    return 2 * (float(value) - variable.low) / (variable.high - variable.low) - 1
