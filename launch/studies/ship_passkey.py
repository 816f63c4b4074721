"""Trains the pass key model that comes with famjax and packs it into the package.

    python launch/studies/ship_passkey.py runs/shipped

Trains gin/experiments/tiny_fam.gin, seed 0, into DIR (some minutes; continues where it was stopped), and writes
famjax/shipped/passkey.safetensors. The SHA-256 that it prints belongs into famjax/infer/shipped.py.
"""

import argparse
import sys
from pathlib import Path

from famjax.cli.main import main as famjax
from famjax.infer.shipped import FOLDER, SHA256, pack

EXPERIMENT = "gin/experiments/tiny_fam.gin"


def main() -> int:
    """Trains and packs the model, and compares its digest with the one in famjax. Returns an exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir", metavar="DIR", help="model directory of the training")
    args = parser.parse_args()
    code = famjax(["train", "--gin_file", EXPERIMENT, f"--gin.MODEL_DIR={str(Path(args.dir))!r}"])
    if code:
        return code
    digest = pack(args.dir, FOLDER / "passkey.safetensors")
    print(f"{FOLDER / 'passkey.safetensors'}: SHA-256 {digest}")
    if digest != SHA256["passkey"]:
        print("write it into SHA256 of famjax/infer/shipped.py")
    return 0


if __name__ == "__main__":
    sys.exit(main())
