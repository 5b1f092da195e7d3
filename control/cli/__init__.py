"""The `brume` command: one module per noun; imports stay inside the commands, so that --help is quick."""
