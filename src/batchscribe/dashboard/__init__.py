"""Read-only pages for a browser, as a server and as files."""
