"""What makes the pages of the site, in Python without Sphinx: names, links, docstrings, pages."""
