"""Everything that takes longer than a change may wait, one after another:

    python tests/long --minutes 60 --seed 1

Each program here has the given minutes, where it takes any, and renews its report in
``tests/long/reports/``. Needs gcc, and what ``.ci/run`` installs. The exit code is 1 where one of
them found something.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
PROGRAMS: dict[str, tuple[str, ...]] = {
    "bits": ("minutes", "seed"),
    "histories": ("minutes", "seed"),
    "torch_histories": ("minutes", "seed"),
    "failures": (),
    "fuzz": ("minutes", "seed"),
    "sanitizers": ("minutes", "seed"),
    "mutants": ("minutes", "seed"),
    "soak": (),
    "subnormals": (),
    "reproducible": (),
    "scoreboard": (),
    "large": (),
    "crowd": (),
}
"""Each with the options that it takes."""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=60.0, help="for each (default: 60)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=PROGRAMS, default=list(PROGRAMS))
    given = vars(parser.parse_args(argv))
    bad = []
    for name in given["only"]:
        options = [x for key in PROGRAMS[name] for x in (f"--{key}", str(given[key]))]
        began = time.monotonic()
        report = HERE / "reports" / f"{name}.md"
        command = [sys.executable, HERE / f"{name}.py", *options, "--report", report]
        code = subprocess.run(command, check=False).returncode
        print(f"=== {name}: exit code {code}, {(time.monotonic() - began) / 60:.1f} minutes\n")
        bad += [name] if code else []
    print(f"found something: {', '.join(bad)}" if bad else "nothing was found")
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
