"""Two processes that share a model each take their part of a version, for every way in which vLLM splits or fuses weights."""

import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from rlhf_dist.models.file_names import in_file
from rlhf_dist.rollout.places import opened, places_of
from rlhf_dist.store.weights import cells_of, encode_bucket
from tests.integration.slices import Loaded, Version, load_each

WAIT_S = 200
SIZES = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 1, "num_attention_heads": 4}
ENDS = {"vocab_size": 250, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
GROUPED = {**SIZES, **ENDS, "num_key_value_heads": 2}
EXPERTS = {"num_experts": 4, "moe_intermediate_size": 64, "num_experts_per_tok": 2, "head_dim": 32}
QUANTISED = "made fp8 on arrival, with scales that no version has"
FAMILIES = {
    # First: vLLM makes the group of those who share experts with its first model, or never.
    "experts": transformers.Qwen3MoeConfig(**GROUPED, **EXPERTS),
    "grouped heads": transformers.LlamaConfig(**GROUPED),
    "one head for keys and values, in both": transformers.LlamaConfig(**GROUPED | {"num_key_value_heads": 1}),
    "tied head": transformers.LlamaConfig(**GROUPED, tie_word_embeddings=True),
    "biases": transformers.Qwen2Config(**GROUPED),
    "fused in the file": transformers.Phi3Config(**GROUPED),
    "interleaved in the file": transformers.GPTNeoXConfig(**SIZES, **ENDS),
    QUANTISED: transformers.LlamaConfig(**GROUPED),
}


def made(config: transformers.PretrainedConfig, folder: Path) -> dict[str, torch.Tensor]:
    """A model of random weights in a folder; returns them as files have them."""
    torch.manual_seed(0)
    lm = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in lm.parameters():
            parameter.normal_()
    lm.save_pretrained(folder)
    return dict(in_file(lm, {name: parameter.data for name, parameter in lm.named_parameters()}))


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[list[dict[str, Loaded]], dict[str, int]]]:
    """What each of two processes has of each family, and the bytes that a whole one has."""
    base = tmp_path_factory.mktemp("families")
    cells = {name: [*cells_of(encode_bucket(made(config, base / name).items()))] for name, config in FAMILIES.items()}
    spawn = multiprocessing.get_context("spawn")
    with places_of([cell for each in cells.values() for cell in each]) as places:
        left = iter(places)
        versions = {
            name: Version(
                str(base / name), [next(left) for _ in each], "fp8_per_channel" if name == QUANTISED else None
            )
            for name, each in cells.items()
        }
        pipes = [spawn.Pipe(duplex=False) for _ in range(2)]
        processes = [
            spawn.Process(target=load_each, args=(rank, base / "meeting", versions, pipe[1]))
            for rank, pipe in enumerate(pipes)
        ]
        for process in processes:
            process.start()
        found: list[dict[str, Loaded]] = [{}, {}]
        for process, (pipe, _), had in zip(processes, pipes, found, strict=True):
            while len(had) < len(FAMILIES) and (pipe.poll(1) or process.is_alive()):
                if pipe.poll():
                    name, told = pipe.recv()
                    had[name] = told
        yield found, {name: sum(cell.data.size for cell in each) for name, each in cells.items()}
        for process in processes:
            process.kill()
            process.join()


@pytest.mark.parametrize("family", FAMILIES)
def test_each_of_two_processes_copies_its_part_and_has_what_it_would_read_from_files(
    family: str, loaded: tuple[list[dict[str, Loaded]], dict[str, int]]
) -> None:
    ranks, whole = loaded
    for rank in ranks:
        assert rank[family].differing == []
        assert rank[family].copied < 0.55 * whole[family]


class Reader:
    """An engine's process, as far as it finds weights."""

    def files(self, tables: list[Any]) -> list[tuple[int, int]]:
        """Inode and offset of each tensor."""
        import ray

        cells = [cell for table in ray.get(tables) for cell in cells_of(table)]
        with places_of(cells) as places:
            found = dict(opened(places))
            assert all(torch.equal(found[cell.name], cell.tensor()) for cell in cells)
            return [(os.stat(place.file).st_ino, place.offset) for place in places]


def test_all_engines_of_a_node_read_the_one_copy_in_rays_store(ray_session: None) -> None:
    import ray

    names = [[f"{bucket}.{number}" for number in range(3)] for bucket in range(2)]
    tables = [ray.put(encode_bucket([(name, torch.randn(100_000)) for name in bucket])) for bucket in names]
    readers = [ray.remote(Reader).options(num_cpus=0).remote() for _ in range(2)]
    one, other = ray.get([reader.files.remote(tables) for reader in readers], timeout=WAIT_S)
    assert one == other
    assert len({inode for inode, _ in one}) == 1
    assert len({offset for _, offset in one}) == 6
    for reader in readers:
        ray.kill(reader)
