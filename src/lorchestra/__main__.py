"""`python -m lorchestra` is the command line."""

import sys

from lorchestra.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
