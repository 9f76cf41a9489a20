"""Pages for a browser: read-only views, as a server and as single files."""
