"""The evaluation of docs/evaluation.md: FAM and BSWA with memory segments, on all tasks that need no download.

    python launch/studies/debian_texts.py runs/texts                   once; needs apt
    python launch/studies/show_evaluation.py runs/show runs/texts

trains eight small models (half an hour on two cores): FAM and BSWA with 0, 1 and 2 memory segments on the pass key,
and the same four on the documents of TEXTS/train. Then one `famjax eval` evaluates all of them on the synthetic tasks
at several lengths and on TEXTS/heldout; the report is runs/show/report/report.html. If chromium (or chrome) is
installed, the top of the report is rendered as report.png. The same command resumes an interrupted run.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

import verbs

SUITE = (
    "passkey", "passkey_depth", "niah_single", "niah_multikey", "niah_multivalue", "niah_multiquery",
    "variable_tracking", "common_words", "frequent_words", "recall", "copy", "text",
)  # fmt: skip
MODELS = ("fam", "bswa", "bswa_1", "bswa_2")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def main() -> int:
    """Trains and evaluates the models. Returns 0, or the exit code of a command that failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="output directory")
    parser.add_argument("texts", type=Path, help="TEXTS/train/*.txt and TEXTS/heldout/*.txt")
    parser.add_argument("--examples", default="20", metavar="N", help="examples per length (default: 20)")
    parser.add_argument(
        "--lengths", default="1k,2k,4k", metavar="N,N", help="lengths of the tasks in tokens (default: 1k,2k,4k)"
    )
    args = parser.parse_args()
    twins = ("--twins", "0,1,2")

    def shown() -> None:
        verbs.famjax("quickstart", "--paper", *twins, "--output", args.folder / "passkey")
        verbs.famjax("quickstart", *twins, "--texts", args.texts, "--output", args.folder / "texts")
        models = [args.folder / task / name for task in ("passkey", "texts") for name in MODELS]
        flags = [word for model in models for word in ("--model", model)]
        flags += ["--lengths", args.lengths, "--examples", args.examples, "--texts", args.texts / "heldout/*.txt"]
        verbs.famjax("eval", *flags, "--task", ",".join(SUITE), "--output", args.folder / "report")

    failed = verbs.run("show_evaluation", shown)
    if not failed:
        picture(args.folder / "report")
    return failed


def picture(report: Path) -> None:
    """Renders the top of the report in `report` as report.png, if a browser is installed."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        print(f"none of {', '.join(BROWSERS)} is installed to render {report / 'report.html'}")
        return
    size, target = "--window-size=1000,2400", report / "report.png"
    page = (report / "report.html").resolve().as_uri()
    flags = ["--headless", "--no-sandbox", "--hide-scrollbars", size, f"--screenshot={target}"]
    subprocess.run([browser, *flags, page], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    print(f"wrote {target}")


if __name__ == "__main__":
    sys.exit(main())
