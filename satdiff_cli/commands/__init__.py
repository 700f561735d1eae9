"""One file, one verb: read, call the core, write, print a summary and the next command."""
