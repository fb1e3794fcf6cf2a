"""The task `echo`: an example of a plugin (docs/extending.md)."""
