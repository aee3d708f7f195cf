"""Configs from YAML files and `--set` overrides, with messages that name the key, what was found and what was expected."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from rlhf_dist.config.job import Job
from rlhf_dist.errors import ConfigError

C = TypeVar("C", bound=BaseModel)

TO_ALGORITHM = (
    *("clip_value", "kl_coef", "kl_target", "kl_horizon", "entropy_coef", "value_coef", "whiten_advantages"),
    *("score_clip", "missing_eos_penalty", "clip_ratio", "gamma", "gae_lambda"),
)
MOVED = {
    **{f"ppo.{name}": f"algorithm.{name}" for name in TO_ALGORITHM},
    "ppo": "rl",
    "surrogate.clip_ratio": "algorithm.clip_ratio",
    "surrogate.kind": "algorithm.surrogate",
    "advantage.kind": "algorithm.baseline",
    "advantage.gamma": "algorithm.gamma",
    "advantage.gae_lambda": "algorithm.gae_lambda",
    "judge": "comment_judge",
}
"""Keys of earlier configs, as runs of then have left them, and what they are called now."""
RENAMED = {"advantage.kind": {"gae": "critic"}}
"""Values that are called otherwise, too."""
EMPTIED = ("advantage", "surrogate")
"""Sections that are no more."""
MOVED_MODULES = {
    "rlhf_dist.data.helpdesk:": "rlhf_dist.tasks.helpdesk:",
    "rlhf_dist.data.scenarios:": "rlhf_dist.tasks.scenarios:",
}


def load(kind: type[C], path: Path, overrides: list[str] | None = None) -> C:
    """Read a YAML file, apply `key.sub=value` overrides, and check everything.

    Raises:
        ConfigError: names the file (or the override), the key, what was found and what was expected.
    """
    tree = read_yaml(path)
    own = Job.model_fields.keys() <= tree.keys()
    """Whether a run has written it, with everything that is not used too."""
    _move_modules(tree)
    if own:
        _move(tree)
    else:
        _refuse_moved(tree, str(path))
    alone = copy.deepcopy(tree)
    if own:
        _refuse_another_method(tree, overrides or [], str(path))
    for override in overrides or []:
        _apply(tree, override)
    config = _validated(kind, tree, path)
    _refuse_idle(config, overrides or [])
    if not own:
        _refuse_idle_file(kind, path, alone)
    return config


def override(config: C, overrides: list[str]) -> C:
    """The same config with `key.sub=value` overrides.

    Raises:
        ConfigError: names the override's key, what was found and what was expected.
    """
    tree = config.model_dump(mode="json")
    _refuse_another_method(tree, overrides, "the config")
    for each in overrides:
        _apply(tree, each)
    changed = _validated(type(config), tree, Path("--set"))
    _refuse_idle(changed, overrides)
    return changed


def dump(config: BaseModel) -> str:
    """The resolved config as YAML, enough to run again."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values of a dumped config by their dotted keys."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def _validated(kind: type[C], tree: dict[str, Any], path: Path) -> C:
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(kind, path, item) for item in error.errors())) from None


def _refuse_idle(config: BaseModel, overrides: Sequence[str]) -> None:
    """Refuse overrides that change nothing."""
    written: dict[str, Any] = {}
    for override in overrides:
        _apply(written, override)
    _check_effect(config, written, "--set")


def _refuse_idle_file(kind: type[BaseModel], path: Path, tree: dict[str, Any]) -> None:
    """Refuse keys that change nothing by the file itself: what only an override makes idle is no mistake of the file's."""
    try:
        config = kind.model_validate(tree)
    except ValidationError:
        return  # whole with its overrides only
    _check_effect(config, tree, str(path))


def _check_effect(config: BaseModel, written: Mapping[str, Any], where: str) -> None:
    idle = config.idle() if isinstance(config, Job) else {}
    for key, value in flat(written).items():
        for without, instead in idle.items():
            if value is not None and f"{key}.".startswith(f"{without}."):
                raise ConfigError(f"{where}: `{key}` is {value!r}, which has no effect here; {instead}")


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file as it stands there, unchecked.

    Raises:
        ConfigError: names the file, and the line where YAML goes wrong.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: no such config file; expected a YAML file")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from None
    tree = _parsed(data, str(path))
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: found {type(tree).__name__}; expected a mapping of settings")
    return tree


def _move(tree: dict[str, Any]) -> None:
    """Bring what earlier versions wrote to where it is now; what stands there already wins."""
    for old, new in MOVED.items():
        *parents, leaf = old.split(".")
        branch = _branch(tree, parents)
        if isinstance(branch, dict) and leaf in branch:
            section, _, key = new.partition(".")
            value = branch.pop(leaf)
            value = RENAMED.get(old, {}).get(value, value) if isinstance(value, str) else value
            if not key:
                tree.setdefault(section, value)
            elif isinstance(target := tree.setdefault(section, {}), dict):
                target.setdefault(key, value)
    for section in EMPTIED:
        if not tree.get(section, True):
            del tree[section]


def _move_modules(tree: dict[str, Any]) -> None:
    """The gold judges of embedded tasks where they are now: no user has chosen their modules' names."""
    judge = tree.get("gold_judge")
    for old, new in MOVED_MODULES.items():
        if isinstance(judge, str) and judge.startswith(old):
            tree["gold_judge"] = new + judge.removeprefix(old)


def _branch(tree: Any, parents: Sequence[str]) -> Any:
    for parent in parents:
        tree = tree.get(parent) if isinstance(tree, dict) else None
    return tree


def _refuse_moved(tree: dict[str, Any], where: str) -> None:
    """Say what to write instead of the keys of earlier versions: nobody should have to guess what took effect."""
    found = []
    for old, new in MOVED.items():
        *parents, leaf = old.split(".")
        branch = _branch(tree, parents)
        if not isinstance(branch, dict) or leaf not in branch:
            continue
        if old == "ppo" and isinstance(branch[leaf], dict):
            found += [_told(f"ppo.{key}", f"rl.{key}") for key in branch[leaf] if f"ppo.{key}" not in MOVED]
        else:
            found.append(_told(old, new, branch[leaf]))
    if found:
        raise ConfigError(f"{where}: keys of an earlier version: {'; '.join(dict.fromkeys(found))}")


def _refuse_another_method(tree: dict[str, Any], overrides: Sequence[str], where: str) -> None:
    """Where every setting is written, a method fills nothing: its name would change, and nothing else."""
    method = _branch(tree, ["algorithm", "method"]) or "ppo"
    for override in overrides:
        key, _, value = override.partition("=")
        if key == "algorithm.method" and value != method:
            raise ConfigError(
                f"--set {override}: {where} has every setting of {method}, of which a method's name would change none; expected "
                "the file that the run was started from, or the settings themselves"
            )


def _told(old: str, new: str, value: Any = None) -> str:
    renamed = RENAMED.get(old, {}).get(value, value) if isinstance(value, str) else None
    return f"`{old}` is now `{new}`" + (f" (here {renamed})" if old.endswith(".kind") and renamed else "")


def _apply(tree: dict[str, Any], override: str) -> None:
    key, found, value = override.partition("=")
    if not found or not key:
        raise ConfigError(f"--set {override}: expected key.sub=value")
    for old, new in MOVED.items():
        if f"{key}.".startswith(f"{old}."):
            raise ConfigError(f"--set {override}: `{key}` is now `{new + key.removeprefix(old)}`")
    if key.split(".")[0] in EMPTIED:
        raise ConfigError(f"--set {override}: `{key.split('.')[0]}` is now part of `algorithm`")
    *parents, leaf = key.split(".")
    for parent in parents:
        branch = tree.setdefault(parent, {})
        if not isinstance(branch, dict):
            raise ConfigError(f"--set {override}: {parent} is a value, not a section")
        tree = branch
    tree[leaf] = _parsed(value, f"--set {override}")


class _Loader(yaml.SafeLoader):
    """Refuses a key that is there twice, of which YAML would take the last."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """A mapping."""
        seen: set[str] = set()
        for key, _ in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else ""
            if name in seen:
                raise yaml.MarkedYAMLError(problem=f"the key `{name}` is there twice", problem_mark=key.start_mark)
            seen.add(name or str(id(key)))
        return super().construct_mapping(node, deep)


def _parsed(data: bytes | str, where: str) -> Any:
    """A YAML document."""
    try:
        return yaml.load(data, _Loader)
    except RecursionError:
        raise ConfigError(f"{where}: nested too deep to read; expected sections of settings") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that is none
        raise ConfigError(f"{where}: not valid YAML: {error}") from None


def _explain(kind: type[BaseModel], path: Path, item: Any) -> str:
    location, field = _located(kind, item["loc"])
    key = ".".join(location)
    if item["type"] == "extra_forbidden":
        near = nearest_key(kind, location)
        if near == _plain(location):
            return f"{path}: unknown key `{key}` for this kind of `{'.'.join(location[:-1])}`"
        hint = f"; did you mean `{near}`?" if near else ""
        return f"{path}: unknown key `{key}`{hint}"
    if item["type"] == "missing":
        return f"{path}: key `{key}` is missing; expected {(field and field.description) or 'a value'}"
    message = item["msg"].removeprefix("Value error, ")
    names_its_key = not key or message.startswith(f"{key}.")
    return f"{path}: {message}" if names_its_key else f"{path}: `{key}` is {item['input']!r}; expected: {message}"


def keys(kind: type[BaseModel], prefix: str = "") -> list[str]:
    """Every dotted key that a config may have, in whichever of a section's kinds."""
    found: dict[str, None] = {}
    for name, field in kind.model_fields.items():
        found[prefix + name] = None
        for section in _sections(field.annotation):
            found |= dict.fromkeys(keys(section, f"{prefix}{name}."))
    return [*found]


def nearest_key(kind: type[BaseModel], location: list[str]) -> str | None:
    """The valid dotted key that looks most like the one found, or None."""
    valid = keys(kind)
    same_leaf = [key for key in valid if key.rsplit(".", 1)[-1] == location[-1]]
    close = difflib.get_close_matches(_plain(location), same_leaf or valid, n=1, cutoff=0.0 if same_leaf else 0.7)
    return close[0] if close else None


def _plain(location: list[str]) -> str:
    return ".".join(part for part in location if not part.isdigit())


def _sections(annotation: Any) -> list[type[BaseModel]]:
    """The sections that a field may hold: by itself, as one of several kinds, or in a list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for inner in get_args(annotation) for section in _sections(inner)]


def _located(kind: type[BaseModel], location: Sequence[Any]) -> tuple[list[str], FieldInfo | None]:
    """Where an error is, as the user writes it, and the field that is there.

    Between the name of a section that comes in several kinds and its keys, pydantic puts the kind.
    """
    found: list[str] = []
    options, field = [kind], None
    tagged = False
    for part in location:
        if tagged and (chosen := [option for option in options if _tag(option) == part]):
            options, tagged = chosen, False
            continue
        found.append(str(part))
        if isinstance(part, str):
            field = next((option.model_fields[part] for option in options if part in option.model_fields), None)
            options = _sections(field.annotation) if field is not None else []
            tagged = len(options) > 1
    return found, field


def _tag(section: type[BaseModel]) -> Any:
    field = section.model_fields.get("kind")
    return get_args(field.annotation)[0] if field is not None and get_args(field.annotation) else None
