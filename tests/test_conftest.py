import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(("options", "code"), [([], 0), (["--no-skips"], 1)])
def test_a_skipped_test_has_failed_where_nothing_may_be_skipped(tmp_path: Path, options: list[str], code: int) -> None:
    file = tmp_path / "test_skipped.py"
    file.write_text(
        "import pytest\n\npytestmark = pytest.mark.skipif(True, reason='no chromium')\n\ndef test_it(): ...\n"
    )
    command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "--rootdir", str(tmp_path), *options, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    assert ("no chromium" in done.stdout) == bool(code)
