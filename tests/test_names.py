"""Every name that the code reads is there: axes in annotations are unknown names too, so linters cannot be asked."""

from __future__ import annotations

import builtins
import dis
import importlib
import pkgutil
from pathlib import Path
from types import CodeType

import pytest

import habitus

MODULES = sorted(m.name for m in pkgutil.walk_packages(habitus.__path__, "habitus.") if not m.name.endswith("__main__"))


def read(code: CodeType) -> set[str]:
    """Globals that a piece of code reads, and what is defined in it."""
    names = {str(step.argval) for step in dis.get_instructions(code) if step.opname == "LOAD_GLOBAL"}
    return names.union(*(read(part) for part in code.co_consts if isinstance(part, CodeType)))


@pytest.mark.parametrize("package", sorted({".".join(name.split(".")[:2]) for name in MODULES}))
def test_names_are_defined(package):
    unknown = {}
    for name in (m for m in MODULES if m == package or m.startswith(f"{package}.")):
        module = importlib.import_module(name)
        source = Path(module.__file__).read_text(encoding="utf-8")
        missing = read(compile(source, name, "exec")) - set(vars(module)) - set(dir(builtins))
        unknown |= {name: missing} if missing else {}
    assert not unknown
