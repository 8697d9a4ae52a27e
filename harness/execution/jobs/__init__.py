"""What each kind of run does in its process: ``<kind>.run(job, context, out)``.

``out`` is the folder that a cached job fills. The worker finds the module by the job's kind.
"""
