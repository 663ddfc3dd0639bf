"""`python -m tests.loaded LIBRARIES STATEMENT [ARGUMENTS]`: run a statement, print the libraries it has loaded.

LIBRARIES are names of modules separated by commas; those loaded are printed as JSON. The statement finds
ARGUMENTS in sys.argv; it may end by SystemExit.
"""

import json
import sys
from contextlib import suppress

if __name__ == "__main__":
    _, libraries, statement, *arguments = sys.argv
    sys.argv = ["tinyllama", *arguments]
    with suppress(SystemExit):
        exec(statement, {})
    print(json.dumps([name for name in libraries.split(",") if name in sys.modules]))
