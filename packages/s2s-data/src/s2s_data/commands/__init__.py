"""The commands of the command line, a module each.

A module has ``add_to(commands)``, which describes its arguments, and ``run(args)``, which returns the exit
code. What a command alone needs is imported in its ``run``, so that the help comes at once.
"""

NAMES = ("import_stereo", "import_manifest", "encode", "check", "stats", "show", "demo", "talk")
