"""One module per `semla` subcommand.

`add_arguments(parser)` also runs for `--help`, and what a command refuses should be refused at once. So what takes long
to import (torch, matplotlib, the pipeline, the lab's stages) is imported in the functions that use it, and for
annotations below `TYPE_CHECKING`.
"""
