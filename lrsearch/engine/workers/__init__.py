"""Workers: who runs the trials of a study, where, and what becomes of one that dies."""
