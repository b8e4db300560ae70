"""Constructions that LiteRT refuses, or runs and computes wrongly: found in the file, named.

Nothing is run: an operator and the types of its tensors tell. Each was measured in LiteRT 2.3, and
a test makes it and runs it, which fails as soon as a newer LiteRT is right.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from secateur.errors import SecateurError
from secateur.tflite import Operator, TfliteFile

EVERY = ("xnnpack", "reference")


@dataclass(frozen=True, kw_only=True)
class Defect:
    """A construction: what the operator `has`, what it was `expected` to have, and the `fix`.

    wrong: the file runs and its answers are wrong; else LiteRT itself refuses it, sooner or later.
    kernels: those that it is a defect in.
    """

    holds: Callable[[Operator], bool]
    has: str
    expected: str
    fix: str
    wrong: bool
    kernels: tuple[str, ...] = EVERY

    def told(self, operator: Operator) -> str:
        """What is wrong with an operator and what to do, for the end of an error's line."""
        constants = (t.shape for t in operator.inputs if t is not None and t.data is not None)
        shape = next(constants, None)  # of the weights: tells it from others of its name
        name = f"{operator.name} {shape}" if shape else operator.name
        return f"{name} received with {self.has}, expected {self.expected}; fix: {self.fix}"


def _encoded(operator: Operator, slot: int) -> bool:
    """Whether an input holds codes whose zeros are left out."""
    tensor = operator.inputs[slot] if len(operator.inputs) > slot else None
    return tensor is not None and tensor.sparsity is not None and not tensor.floating


def _types(operator: Operator) -> list[str]:
    return [tensor.type if tensor else "" for tensor in operator.inputs]


def _floats_times_encoded(operator: Operator) -> bool:
    floats = _types(operator)[:1] == ["FLOAT32"]
    return operator.name == "FULLY_CONNECTED" and floats and _encoded(operator, 1)


def _in_blocks(operator: Operator) -> bool:
    """Whether the weights have a scale for each block, stored as a tensor of its own."""
    tensor = operator.inputs[1] if len(operator.inputs) > 1 else None
    return tensor is not None and tensor.scales is not None


def _undeclared_bias(*names: str, slot: int = 2) -> Callable[[Operator], bool]:
    def holds(operator: Operator) -> bool:
        types = _types(operator)
        if operator.name not in names or len(types) <= slot or types[slot] != "INT32":
            return False
        return types[slot - 2] == "INT16" and operator.bias_type != "INT32"

    return holds


# Both kinds of encoded codes.
ENCODED: dict[str, Any] = {
    "expected": "encoded floats, or 8 bits without the encoding",
    "fix": "export 'sparse', or 'dynamic' or 'int8'; the runtime litert:reference computes it",
    "kernels": ("xnnpack",),
}
UNDECLARED: dict[str, Any] = {
    "has": "16-bit activations and 32-bit biases, which it reads as 64-bit ones",
    "expected": "64-bit biases",
    "fix": "export 'int16x8'",
}
DEFECTS = (
    Defect(
        holds=lambda operator: operator.name == "DENSIFY" and _encoded(operator, 0),
        has="8-bit weights whose zeros are encoded, which XNNPACK cannot prepare",
        wrong=False,
        **ENCODED,
    ),
    Defect(
        holds=_floats_times_encoded,
        has="8-bit weights whose zeros are encoded, which XNNPACK reads as if none were left out",
        wrong=True,
        **ENCODED,
    ),
    Defect(holds=_undeclared_bias("CONV_2D"), wrong=True, **UNDECLARED),
    # The optimized kernels go by the type of the bias itself.
    Defect(
        holds=_undeclared_bias("FULLY_CONNECTED"), wrong=True, kernels=("reference",), **UNDECLARED
    ),
    Defect(
        holds=_undeclared_bias("DEPTHWISE_CONV_2D"),
        has="16-bit activations and 32-bit biases",
        expected="64-bit biases",
        fix="export 'int16x8'",
        wrong=False,
    ),
    Defect(
        holds=lambda operator: operator.name == "CONV_2D" and _types(operator)[1:2] == ["INT2"],
        has="2-bit weights, which it does not unpack",
        expected="4 bits or more",
        fix="export 'int4' or 'dynamic'",
        wrong=True,
    ),
    Defect(
        holds=lambda operator: operator.name == "FULLY_CONNECTED" and _in_blocks(operator),
        has="4-bit weights in blocks, of which it reads the scales as those of outputs",
        expected="scales of outputs",
        fix="export 'int4' without blocks; the runtime litert (XNNPACK) computes it",
        wrong=True,
        kernels=("reference",),
    ),
    Defect(
        holds=lambda operator: operator.name == "WHILE",
        has="a loop over steps, as a recurrent layer makes it",
        expected="its steps one by one",
        fix="build recurrent layers with unroll=True, the weights stay the same",
        wrong=False,
    ),
)


def defects(file: TfliteFile, kernels: str) -> Iterator[tuple[Operator, Defect]]:
    """Every operator of a file that is one of `DEFECTS` in these kernels, with what it is."""
    for operator in file.operators:
        for defect in DEFECTS:
            if kernels in defect.kernels and defect.holds(operator):
                yield operator, defect


def require_right(file: TfliteFile, source: str, kernels: str) -> None:
    """Raise `SecateurError` for a file that would run and answer wrongly, with cause and fix."""
    for operator, defect in defects(file, kernels):
        if defect.wrong:
            raise SecateurError(
                f"{source} runs in LiteRT and answers wrongly: {defect.told(operator)}"
            )


def refusal(file: TfliteFile, source: str, kernels: str, told: str) -> SecateurError | None:
    """The error for a file that LiteRT refuses with the words `told`; None: of no known cause."""
    for operator, defect in defects(file, kernels):
        return SecateurError(f"{source} does not run in LiteRT ({told}): {defect.told(operator)}")
    return None
