"""The development environment behind the Makefile; everything it makes lives in `.dev/`."""

import sys

if sys.version_info < (3, 10):  # noqa: UP036 - here, before a module is imported that an older Python can't read
    sys.exit(f"Python 3.10 or newer is needed, this is {sys.version.split()[0]}: make PYTHON=/path/to/python3")
