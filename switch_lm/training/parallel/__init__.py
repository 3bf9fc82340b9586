"""Data parallel training: one run in several processes, with the numbers of one."""
