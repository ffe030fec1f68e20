"""Maps of many genomes in a browser: what is shown, the server, and its page."""
