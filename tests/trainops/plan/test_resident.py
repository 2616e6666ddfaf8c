"""What a plan for the CPU says of memory, against what the process that runs it takes."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from benchmarks.plan_resident import CODE


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_playground_takes_what_its_plan_says():
    out = subprocess.run([sys.executable, "-c", CODE, "--config=playground"], capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    found = json.loads(out.stdout.splitlines()[-1])
    assert found["added"] == pytest.approx(found["planned"], rel=0.15)
