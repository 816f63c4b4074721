"""Writes the pass key before and after fine-tuning, as `real_model_story.py` evaluates it, into docs/smollm2.md.

    python launch/studies/real_model_story.py runs/real
    python launch/studies/smollm2_page.py "AMD EPYC=runs/real/shown/results.json"

docs/smollm2.json keeps the figures by the name of the machine: one of the same name is replaced, and `"AMD EPYC="`
removes it. Without arguments the table is written again.
"""

import sys

from pages import DOCS, Page, by_name, publish
from recall_table import kept, section

PAGE = Page(DOCS / "smollm2.md", DOCS / "smollm2.json", "smollm2", by_name(section))

if __name__ == "__main__":
    sys.exit(publish(PAGE, __doc__, "models", kept, "famjax eval"))
