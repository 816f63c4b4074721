"""Reports of results: tables, plots and HTML pages."""
