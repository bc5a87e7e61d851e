"""Opening exported files, one runtime a file; none needs another one's packages."""
