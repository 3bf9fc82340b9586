"""Reports and pages: their contents, and their two forms, Markdown and a self-contained HTML file."""
