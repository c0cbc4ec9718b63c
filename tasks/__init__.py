"""The seqio tasks: `import tasks` registers all of them.

docstrings, prose: from the installed packages; newswire: generated; xsum: see its module. A user's
own files: `tasks.jsonl.register`.
"""

from tasks import docstrings, newswire, pretraining, xsum

__all__ = ["docstrings", "newswire", "pretraining", "xsum"]
