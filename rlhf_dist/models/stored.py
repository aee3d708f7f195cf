"""A folder's weights under a model's own names, read a few at a time.

transformers holds some families otherwise than their files do (`file_names`); here its way from files to model is taken for one
group of weights after the other, each of those that it converts together.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import ExitStack
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch

Group = tuple[str, ...]
"""Names in the files that become weights of the model together: most are alone."""


class FileWeights:
    """What the files hold; of what is not read, nothing is in memory."""

    def __init__(self, model: Any, path: str, own: Collection[str]) -> None:
        """Read the files' headers.

        Args:
            model: a Hugging Face model that was read from the folder.
            path: the folder.
            own: all names that the model has for its parameters and persistent buffers.
        """
        from transformers.core_model_loading import WeightConverter, WeightRenaming

        conversions = model._weight_conversions
        self._model, self._own = model, dict.fromkeys(own, True)
        self._renamings = [each for each in conversions if isinstance(each, WeightRenaming)]
        self._converters = [each for each in conversions if isinstance(each, WeightConverter)]
        self._by_pattern = {pattern: each for each in self._converters for pattern in each.source_patterns}
        self._files: dict[str, Path] = {}
        self._shapes: dict[str, list[int]] = {}
        for file in sorted(Path(path).glob("*.safetensors")):
            self._look_into(file)

    def _look_into(self, file: Path) -> None:
        from safetensors import safe_open

        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - it is no mapping
                self._files[name], self._shapes[name] = file, opened.get_slice(name).get_shape()

    def groups(self, wanted: Collection[str]) -> list[Group]:
        """What must be read for some weights of the model, in an order that depends on the files alone."""
        from transformers.core_model_loading import dot_natural_key

        found: dict[str, list[str]] = {}
        for name in sorted(self._files, key=dot_natural_key):
            found.setdefault(self._renamed(name)[0], []).append(name)
        return [tuple(names) for names in found.values() if not {*self.told(tuple(names))}.isdisjoint(wanted)]

    def told(self, group: Group) -> dict[str, torch.Size]:
        """Names and shapes of the weights that a group becomes; nothing is read."""
        empty = {name: torch.empty(self._shapes[name], device="meta") for name in group}
        return {name: tensor.shape for name, tensor in self._converted(empty).items()}

    def read(self, group: Group) -> dict[str, torch.Tensor]:
        """The weights that a group becomes, in the files' dtype; unconverted ones are pages of the file."""
        from safetensors import safe_open

        with ExitStack() as files:
            opened = {
                file: files.enter_context(safe_open(file, framework="pt"))
                for file in {self._files[name] for name in group}
            }
            return self._converted({name: opened[self._files[name]].get_tensor(name) for name in group})

    def _renamed(self, name: str) -> tuple[str, str | None]:
        """The model's name, the first of several, and the pattern of the conversion that leads to it, if there is one."""
        from transformers.core_model_loading import rename_source_key

        prefix = self._model.base_model_prefix
        found, pattern = rename_source_key(name, self._renamings, self._converters, prefix, self._own)
        if found not in self._own and name in self._own:
            found, pattern = rename_source_key(name, [], [], prefix, self._own)
        return found, pattern

    def _converted(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        found: dict[str, torch.Tensor] = {}
        under_way: dict[str, Any] = {}
        for name, tensor in tensors.items():
            own, pattern = self._renamed(name)
            if pattern is None:
                found[own] = tensor
            else:
                made = under_way.setdefault(own, deepcopy(self._by_pattern[pattern]))
                made.add_tensor(own, name, pattern, tensor)
        for own, conversion in under_way.items():
            for name, made in conversion.convert(own, model=self._model, config=self._model.config).items():
                found[name] = made[0] if isinstance(made, list) else made
        return {name: tensor for name, tensor in found.items() if name in self._own}
