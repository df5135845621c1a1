"""What can go wrong with an input: threat models, the attacks built from them, and corruptions.

    import robust
    result = robust.autoattack(model, image, label, eps=4 / 255)
    foggy = robust.corrupt(image, "fog", 3, seed=key)

`autoattack`, `pgd`, `apgd`, `fab` and `square` are functions for anybody's model and return a `robust.AttackResult`;
`corrupt` needs no model, and `list_corruptions` names the kinds.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robust.api import apgd, fab, square
    from robust.autoattack import autoattack
    from robust.bpda import bpda
    from robust.corruptions.apply import corrupt
    from robust.corruptions.names import list_corruptions
    from robust.pgd import pgd
    from robust.result import AttackResult

__all__ = [
    "AttackResult",
    "apgd",
    "autoattack",
    "bpda",
    "corrupt",
    "fab",
    "list_corruptions",
    "pgd",
    "square",
]

_HOMES = {
    "AttackResult": "robust.result",
    "apgd": "robust.api",
    "autoattack": "robust.autoattack",
    "bpda": "robust.bpda",
    "corrupt": "robust.corruptions.apply",
    "fab": "robust.api",
    "list_corruptions": "robust.corruptions.names",
    "pgd": "robust.pgd",
    "square": "robust.api",
}


def _public(name: str) -> property:
    # Imported when asked for: lists of attacks need no torch. A property, because importing robust.pgd would put the
    # module in the place of the function: to set it does nothing. `from robust.pgd import PGD` finds the module.
    return property(
        lambda module: getattr(import_module(_HOMES[name]), name), lambda module, value: None, doc=name
    )


class _Package(ModuleType):
    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *__all__})


_members: dict[str, Any] = {name: _public(name) for name in __all__}
sys.modules[__name__].__class__ = type("_Package", (_Package,), _members)
