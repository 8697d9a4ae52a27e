"""What each kind of run does inside its own process: ``<kind>.run(job, context, out)``.

``out`` is the folder to fill, of a job that is cached. The worker finds the module by the job's kind.
"""
