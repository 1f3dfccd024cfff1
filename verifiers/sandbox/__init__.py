"""A sandbox for code that a model wrote. (docstring is completed below)"""

from .job import Backend, Job, Limits, Outcome, SandboxError
from .local import TIERS, Sandbox

__all__ = ["TIERS", "Backend", "Job", "Limits", "Outcome", "Sandbox", "SandboxError"]
