"""`python -m lora_dist COMMAND`."""

import sys

from lora_dist.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
