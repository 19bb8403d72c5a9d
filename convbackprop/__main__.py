"""python -m convbackprop."""

import sys

from convbackprop.cli import main

if __name__ == "__main__":
    sys.exit(main())
