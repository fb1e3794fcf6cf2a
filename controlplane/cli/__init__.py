"""The `modelmora` command: parses, calls the REST client, prints.

What only some commands need (httpx, rich, settings) is imported inside them: `modelmora --version`
and shell completion answer at once.
"""
