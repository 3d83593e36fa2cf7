"""The command line: `precfm VERB`."""

from precfm.cli.command_line import app as app
from precfm.cli.command_line import main as main
