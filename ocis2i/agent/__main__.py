"""The agent program, started as `python -I -S agent/__main__.py FD` with an empty environment.

FD is one end of a `SOCK_SEQPACKET` pair. The rest is in `ocis2i.agent.serving`: Python keeps no
bytecode of the file that it is started with.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
    from ocis2i.agent.serving import main

    main()
