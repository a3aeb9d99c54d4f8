"""Instructions for each element of a step, by formats: what a step costs wherever it runs.

    python bench/instructions.py [--write]

Each case is run under ``valgrind --tool=callgrind`` at the level v3, and what the compiled modules
of this package execute is counted; the same binary gives the same number, whatever else the machine
does. ``--write`` makes the numbers the record, ``bench/instructions.json``, which a test compares
with.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

RECORD = Path(__file__).with_name("instructions.json")
CASES: dict[str, str] = {
    "AdamW, float32": 'run("float32", "float32")',
    "AdamW, float32, clipped to a norm": (
        'run("float32", "float32", clip=st.clip.global_norm(1.0))'
    ),
    "AdamW, bfloat16, float32 states": 'run("bfloat16", "bfloat16")',
    "AdamW, all bfloat16": 'run("bfloat16", "bfloat16", state_dtype="bfloat16")',
    "AdamW, bfloat16 with split16": 'run("bfloat16", "bfloat16", master="split16")',
    "AdamW, q8 states": 'run("float32", "float32", state_dtype="q8")',
    "AdamW, bfloat16 with split16, q8 states": (
        'run("bfloat16", "bfloat16", master="split16", state_dtype="q8")'
    ),
    "AdamW, q8 states, clipped": (
        'run("float32", "float32", state_dtype="q8", clip=st.clip.value(1.0))'
    ),
    "AdamW, float16, float32 states": 'run("float16", "float16")',
}
_SIZE, _STEPS = 1 << 16, 4
_CODE = f"""
import numpy as np, steepest as st
from steepest import codecs
from steepest.memory import formats
st.set_num_threads(1)
def run(of_p, of_g, **options):
    rng = np.random.default_rng(0)
    p, g = (codecs.encoded(rng.standard_normal({_SIZE}), formats.named(x)) for x in (of_p, of_g))
    opt = st.AdamW(p, **options)
    for _ in range({_STEPS}):
        opt.step(g)
"""


def compiler() -> str:
    """The C compiler here, on which the numbers depend."""
    return subprocess.run(["cc", "-dumpfullversion"], capture_output=True, text=True).stdout.strip()


def per_element(code: str) -> float:
    """Instructions of the compiled modules for each element and step of a case."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        subprocess.run(
            ["valgrind", "-q", "--tool=callgrind", f"--callgrind-out-file={out}", sys.executable,
             "-c", _CODE + code],
            check=True, env={"PATH": "/usr/bin:/bin", "STEEPEST_ISA": "v3", "PYTHONHASHSEED": "0"},
            capture_output=True,
        )  # fmt: skip
        return _own(out.read_text()) / (_SIZE * _STEPS)


def _own(text: str) -> int:
    """What a profile counts in objects of this package, without what they call elsewhere."""
    names: dict[str, str] = {}
    own, called, total = False, False, 0
    for line in text.splitlines():
        found = re.match(r"(c?)ob=(\(\d+\))(?: (.*))?", line)
        if found:
            name = names.setdefault(found[2], found[3] or "")
            own = own if found[1] else "/steepest/kernels/" in name
        elif line.startswith("calls="):
            called = True
        elif re.match(r"[+\-*\d]", line):
            total += int(line.split()[1]) if own and not called else 0
            called = False
    return total


def measured() -> dict[str, Any]:
    """All cases, and what the numbers depend on."""
    return {"compiler": compiler()} | {
        case: round(per_element(code), 2) for case, code in CASES.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--write", action="store_true", help=f"make them {RECORD.name}")
    given = parser.parse_args()
    found = measured()
    before = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    for case in CASES:
        print(f"{case:42} {found[case]:7.2f}  (recorded {before.get(case, 'never')})")
    if given.write:
        RECORD.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
