"""Wheels and source distributions are the same bytes wherever they are built.

    python tests/long/reproducible.py            every level
    python tests/long/reproducible.py --fast     the level base alone

Builds twice from copies of the sources in folders of other names and lengths, at other times, in
another order of files, with another umask, and with ``SOURCE_DATE_EPOCH``, and compares. Needs the
same Python, compiler and build requirements in both; the release workflow pins none of these, so a
wheel can be built again with what its SBOM says.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[2]
EPOCH = "1700000000"
SOURCES = ("CMakeLists.txt", "pyproject.toml", "README.md", "LICENSE", "LICENSE-libgomp", "src")
COMPILED = ("*.so", "*.pyd", "__pycache__", "*.egg-info")


def copied(folder: Path, backwards: bool) -> Path:
    """A copy of the sources, made in one order or the other."""
    names = [path for name in SOURCES for path in [ROOT / name, *(ROOT / name).rglob("*")]]
    files = sorted((path for path in names if path.is_file()), reverse=backwards)
    for path in files:
        if not any(path.match(pattern) or "__pycache__" in path.parts for pattern in COMPILED):
            target = folder / path.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    return folder


def built(source: Path, out: Path, levels: str, mask: int) -> list[Path]:
    """The wheel and the source distribution of a copy."""
    isolated = not all(find_spec(x) for x in ("scikit_build_core", "cython_cmake", "Cython"))
    wheel = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(out)]
    wheel += [] if isolated else ["--no-build-isolation"]
    wheel += [f"-Cbuild-dir={source.parent / 'build'}", f"-Ccmake.define.STEEPEST_LEVELS={levels}"]
    environment = os.environ | {"SOURCE_DATE_EPOCH": EPOCH}
    subprocess.run([*wheel, str(source)], check=True, env=environment, umask=mask)
    sdist = "from scikit_build_core.build import build_sdist as b; import sys; b(sys.argv[1])"
    if not isolated:
        subprocess.run(
            [sys.executable, "-c", sdist, str(out)],
            cwd=source, check=True, env=environment, umask=mask, stdout=subprocess.DEVNULL,
        )  # fmt: skip
    return sorted(out.iterdir())


def differences(first: Path, second: Path) -> list[str]:
    """What differs between two files, by the names inside where they are wheels."""
    if first.read_bytes() == second.read_bytes():
        return []
    found = [f"{first.name} differs"]
    if first.suffix == ".whl":
        with zipfile.ZipFile(first) as a, zipfile.ZipFile(second) as b:
            for one, other in zip(a.infolist(), b.infolist(), strict=False):
                facts = ("filename", "date_time", "external_attr", "CRC", "file_size")
                told = [x for x in facts if getattr(one, x) != getattr(other, x)]
                found += [f"  {one.filename}: {', '.join(told)}"] if told else []
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--fast", action="store_true", help="the level base alone")
    parser.add_argument("--report", type=Path, help="a file for the report")
    parser.add_argument("--keep", type=Path, help="a folder for what was built, if it differs")
    arguments = parser.parse_args(argv)
    levels = "base" if arguments.fast else "base;v3;v4"
    with tempfile.TemporaryDirectory() as folder:
        places = [Path(folder, "a"), Path(folder, "another", "and", "longer")]
        copies = [copied(place / "source", bool(i)) for i, place in enumerate(places)]
        made = []
        for place, source, mask in zip(places, copies, (0o022, 0o027), strict=True):
            (place / "out").mkdir()
            made.append(built(source, place / "out", levels, mask))
        names = [[path.name for path in files] for files in made]
        wrong = [] if names[0] == names[1] else [f"other files: {names}"]
        for first, second in zip(*made, strict=False):
            wrong += differences(first, second)
        lines = [
            f"| {path.name} | {path.stat().st_size:,} | "
            f"`{hashlib.sha256(path.read_bytes()).hexdigest()}` |"
            for path in made[0]
        ]
        if wrong and arguments.keep:
            shutil.copytree(folder, arguments.keep, dirs_exist_ok=True)
    given = " ".join(sys.argv[1:] if argv is None else argv)
    text = "\n".join([
        "# Reproducible builds", "",
        f"`python tests/long/reproducible.py {given}`".replace(" `", "`"),
        "", "| file | bytes | SHA-256, of both builds |", "|---|---|---|", *lines, "",
        *(wrong or ["Both builds have the same bytes."]), "",
    ])  # fmt: skip
    print(text)
    if arguments.report:
        arguments.report.write_text(text, encoding="utf-8")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
