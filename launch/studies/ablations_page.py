"""Writes the results of `memory_study.py --part ablations` into docs/ablations.md.

    python launch/studies/memory_study.py runs/memory --part ablations
    python launch/studies/ablations_page.py "AMD EPYC=runs/memory/study.json"

docs/ablations.json keeps the figures by the name of the machine: one of the same name is replaced, and `"AMD EPYC="`
removes it. Without arguments the table is written again.
"""

import sys

from pages import DOCS, Page, by_name, publish
from recall_table import kept, section

PAGE = Page(DOCS / "ablations.md", DOCS / "ablations.json", "ablations", by_name(section))

if __name__ == "__main__":
    sys.exit(publish(PAGE, __doc__, "runs", kept, "memory_study.py"))
