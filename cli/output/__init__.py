"""How things are shown: tables, sizes and times, Go templates, progress bars."""
