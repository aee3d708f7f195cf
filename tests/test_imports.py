import importlib.util
import subprocess
import sys

from rlhf_dist.imports import without

CODE = """
import sys
from rlhf_dist.imports import import_transformers
import_transformers()
from transformers import LlamaForCausalLM
print("sklearn" in sys.modules)
import sklearn.metrics
"""


def test_a_package_is_hidden_inside_the_block_only() -> None:
    with without("wave"):
        assert importlib.util.find_spec("wave") is None
    assert importlib.util.find_spec("wave") is not None


def test_what_was_imported_before_stays() -> None:
    with without("subprocess"):
        assert sys.modules["subprocess"] is subprocess
    assert sys.modules["subprocess"] is subprocess


def test_models_come_without_scikit_learn_which_a_users_reward_may_still_import() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "False"), done.stderr
