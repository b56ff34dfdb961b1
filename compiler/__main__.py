import sys

from svitc.cli.main import main

sys.exit(main())
