import sys

from svitc.cli import main

sys.exit(main())
