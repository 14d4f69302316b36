"""The composition root: settings, processes, commands. Imported by nobody."""
