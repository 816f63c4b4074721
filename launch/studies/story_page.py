"""Writes the pass key before and after fine-tuning, as `pretrained_story.py` evaluates it, into docs/story.md.

    python launch/studies/pretrained_story.py runs/story
    python launch/studies/story_page.py "AMD EPYC=runs/story/shown/results.json"

docs/story.json keeps the figures by the name of the machine: one of the same name is replaced, and `"AMD EPYC="`
removes it. Without arguments the table is written again.
"""

import sys

from pages import DOCS, Page, by_name, publish
from recall_table import kept, section

PAGE = Page(DOCS / "story.md", DOCS / "story.json", "story", by_name(section))

if __name__ == "__main__":
    sys.exit(publish(PAGE, __doc__, "models", kept, "famjax eval"))
