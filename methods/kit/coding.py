"""What the values of a tensor are stored as: a method declares it, the codec writes exactly that and proves it.

A method that leaves few distinct values in a weight says so here, on the module that it returns:
``attach(conv, "weight", Coding("codebook", bits=4, huffman=True))``. Nothing needs to be said of zeros (the codec
stores a sparse tensor sparsely where that is smaller) or of plain fp32. A declaration that the values do not keep is an
error when the file is written, never a rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from baselines.errors import UserError

VERSION = 1
KINDS = ("dense", "codebook", "binary", "ternary")
MAX_BITS = 16  # of a codebook's indices and of a relative position
DECLARED, INPUT = "_coding", "_input_bits"


@dataclass(frozen=True)
class Coding:
    """The storage of one parameter.

    ``kind``: "dense" numbers of ``bits`` 32 (fp32) or 16 (fp16; every value has to be one); "codebook": at most
    2**bits distinct fp32 values and an index of ``bits`` for each weight; "binary": two values -a and a, and "ternary":
    -a, 0 and a, with one scale a for each slice along the first axis (``per_channel``) or one for the tensor.
    ``sparse``: None, or the bits of the distance to the next stored weight (Deep Compression; a filler zero is stored
    where a distance does not fit, and is then one of a codebook's values), for dense and codebook. ``huffman``: the
    indices and the distances are Huffman-coded. UserError for a combination that does not exist.
    """

    kind: str = "dense"
    bits: int | None = None
    sparse: int | None = None
    huffman: bool = False
    per_channel: bool = True

    def __post_init__(self) -> None:
        """Refuse what no file can hold."""
        if self.kind not in KINDS:
            raise UserError(f"There is no coding '{self.kind}': choose one of {', '.join(KINDS)}.")
        if self.kind == "codebook" and (self.bits is None or not 1 <= self.bits <= MAX_BITS):
            raise UserError(f"A codebook of {self.bits} bits cannot be stored: give bits from 1 to {MAX_BITS}.")
        if self.kind == "dense" and self.bits not in (None, 16, 32):
            raise UserError(f"Dense numbers of {self.bits} bits cannot be stored: give 32 (fp32) or 16 (fp16).")
        if self.kind in ("binary", "ternary") and (self.bits, self.sparse, self.huffman) != (None, None, False):
            raise UserError(f"A {self.kind} coding takes neither bits, sparse nor huffman: leave them out.")
        if self.sparse is not None and not 1 <= self.sparse <= MAX_BITS:
            raise UserError(f"Distances of {self.sparse} bits cannot be stored: give from 1 to {MAX_BITS}.")
        if self.kind == "dense" and self.huffman and self.sparse is None:
            raise UserError("Dense numbers have no indices to Huffman-code: use a codebook or sparse positions.")

    @property
    def weight_bits(self) -> int:
        """Bits of one weight in arithmetic: 1 binary, 2 ternary, a codebook's index bits, else 16 or 32."""
        return {"binary": 1, "ternary": 2}.get(self.kind) or self.bits or 32


def attach(module: nn.Module, name: str, coding: Coding) -> None:
    """Declare the storage of the parameter ``name`` of ``module``; UserError where there is no such parameter."""
    if name not in dict(module.named_parameters(recurse=False)):
        raise UserError(f"{type(module).__name__} has no parameter '{name}' to declare a coding for.")
    vars(module).setdefault(DECLARED, {})[name] = coding


def attach_input(module: nn.Module, bits: int) -> None:
    """Declare that ``module`` multiplies inputs of ``bits`` bits (1 to 32): the activation bits of bit-operations."""
    if not 1 <= bits <= 32:
        raise UserError(f"Activations of {bits} bits do not exist: give from 1 to 32.")
    vars(module)[INPUT] = bits


def codings(model: nn.Module) -> dict[str, Coding]:
    """Full parameter name -> declared coding; parameters without one are left out."""
    return dict(_declared(model))


def _declared(model: nn.Module) -> Iterator[tuple[str, Coding]]:
    for path, module in model.named_modules():
        for name, coding in vars(module).get(DECLARED, {}).items():
            yield f"{path}.{name}".lstrip("."), coding


def input_bits(module: nn.Module) -> int:
    """Bits of the activations that ``module`` multiplies; 32 unless declared."""
    return vars(module).get(INPUT, 32)
