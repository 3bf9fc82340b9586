"""What a report or page says, and its two forms: Markdown and a self-contained HTML file."""
