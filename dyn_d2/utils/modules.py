"""``nn.ModuleList`` with a known type of its elements."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Generic, TypeVar

from torch import nn

if TYPE_CHECKING:
    Kind = TypeVar("Kind", bound=nn.Module)

    class ModuleListOf(nn.ModuleList, Generic[Kind]):
        """What type checkers take ``nn.ModuleList`` for, which forgets what it holds."""

        def __init__(self, modules: Iterable[Kind]) -> None: ...

        def __getitem__(self, index: int) -> Kind: ...  # type: ignore[override]  # slices are not needed

        def __iter__(self) -> Iterator[Kind]: ...

else:
    ModuleListOf = nn.ModuleList
