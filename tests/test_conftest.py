import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


MARKED = "pytestmark = pytest.mark.skipif(True, reason='no chromium')"
WHOLE = "pytest.skip('no chromium', allow_module_level=True)"


@pytest.mark.parametrize(
    ("options", "skip", "code"),
    [([], MARKED, 0), (["--no-skips"], MARKED, 1), (["--no-skips"], WHOLE, 2)],
    ids=["allowed", "a test", "a whole file"],
)
def test_a_skipped_test_has_failed_where_nothing_may_be_skipped(
    tmp_path: Path, options: list[str], skip: str, code: int
) -> None:
    file = tmp_path / "test_skipped.py"
    file.write_text(f"import pytest\n\n{skip}\n\ndef test_it(): ...\n")
    command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "--rootdir", str(tmp_path), *options, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    assert ("no chromium" in done.stdout) == bool(code)
