"""Entry point of `python -m famjax VERB`, the same as `famjax VERB`."""

import sys

from famjax.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
