"""Downloads long texts for experiments: documentation and proofs in Debian packages.

    python launch/studies/debian_texts.py DIR

downloads packages with `apt-get download` (nothing is installed, no privileges are needed), and writes each text
to DIR/train/NAME.txt or DIR/heldout/NAME.txt. The split depends only on the name, so it is reproducible.

    python3.11-doc   the Python documentation, reStructuredText
    libcoq-stdlib    the standard library of Coq: definitions and proofs
"""

import argparse
import hashlib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

# Package -> pattern of its texts in the unpacked archive.
PACKAGES = {
    "python3.11-doc": "usr/share/doc/python3.11/html/_sources/**/*.rst.txt",
    "libcoq-stdlib": "usr/lib/ocaml/coq/theories/**/*.v",
}
SHORTEST = 2000  # bytes; shorter texts do not exercise the memory
HELD_OUT = 10  # one in ten texts is held out


def main() -> int:
    """Downloads and writes the texts. Returns 0, or 2 with an error line if apt is missing or fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="output directory; must be new or empty")
    folder: Path = parser.parse_args().folder
    if folder.exists() and any(folder.iterdir()):
        return fail(f"{folder} is not empty; name a new folder")
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            return fail(f"{tool} is not installed: this script needs Debian or a derivative")
    counts = {"train": [0, 0], "heldout": [0, 0]}
    with tempfile.TemporaryDirectory() as scratch:
        for package, pattern in PACKAGES.items():
            there = Path(scratch) / package
            there.mkdir()
            done = subprocess.run(["apt-get", "download", package], cwd=there, capture_output=True, text=True)
            archives = list(there.glob("*.deb"))
            if done.returncode or not archives:
                return fail(f"apt-get download {package} failed: {done.stderr.strip().splitlines()[-1:]}; "
                            f"is it in this release? try apt-get update")  # fmt: skip
            subprocess.run(["dpkg-deb", "-x", str(archives[0]), str(there / "files")], check=True)
            for path in sorted((there / "files").glob(pattern)):
                text = path.read_bytes()
                if len(text) >= SHORTEST:
                    split = keep(folder, name_of(path.relative_to(there / "files"), package), text)
                    counts[split][0] += 1
                    counts[split][1] += len(text)
    for split, (texts, size) in counts.items():
        print(f"{folder / split}: {texts} texts, {size / 1e6:.1f} MB")
    return 0


def name_of(path: Path, package: str) -> str:
    """Returns `python3.11-doc.library.asyncio-task` for .../_sources/library/asyncio-task.rst.txt."""
    parts = list(path.parts)
    root = next(i for i, part in enumerate(parts) if part in ("_sources", "theories"))
    return ".".join([package, *parts[root + 1 : -1], parts[-1].removesuffix(".v").removesuffix(".rst.txt")])


def keep(folder: Path, name: str, text: bytes) -> str:
    """Writes a text to its split, which a hash of its name decides, and returns the split's name."""
    split = "heldout" if int(hashlib.sha256(name.encode()).hexdigest(), 16) % HELD_OUT == 0 else "train"
    (folder / split).mkdir(parents=True, exist_ok=True)
    (folder / split / f"{name}.txt").write_bytes(text)
    return split


def fail(message: str) -> int:
    """Prints an error in one line and returns exit code 2."""
    print(f"debian_texts: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
