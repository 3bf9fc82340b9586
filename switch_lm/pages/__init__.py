"""The form of HTML pages, Markdown and pictures."""
