"""The public API as text: every name, its signature, the fields that its docstring promises.

``python tests/public_api.py > tests/public_api.txt`` after a change that is meant; `test_api.py` compares the two.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing

import bcnmf_sc as bc


def described() -> str:
    """One block per public name, in the order of the alphabet."""
    blocks = []
    for part in sorted(bc.__all__):
        module = getattr(bc, part)
        names = {part: module}
        if inspect.ismodule(module):
            names = {f"{part}.{name}": getattr(module, name) for name in sorted(module.__all__)}
        blocks += [_block(name, value) for name, value in names.items()]
    return "\n".join(blocks) + "\n"


def _block(name: str, value: object) -> str:
    lines = [name]
    if typing.is_typeddict(value):
        lines += [f"    {field}: {kind.__forward_arg__}" for field, kind in inspect.get_annotations(value).items()]
    elif inspect.isfunction(value) or dataclasses.is_dataclass(value):
        signature = inspect.signature(value)
        lines += [f"    {parameter}" for parameter in signature.parameters.values()]
        lines.append(f"    -> {signature.return_annotation}")
    returned = (inspect.getdoc(value) or "").partition("\nReturns\n")[2].partition("\nExamples\n")[0]
    fields = re.findall(r"`\.(\w+\[[^`]+\])`", returned)
    lines += [f"    writes .{field}" for field in dict.fromkeys(fields)]
    return "\n".join(lines)


if __name__ == "__main__":
    print(described(), end="")
