"""One module per `semla` subcommand."""
