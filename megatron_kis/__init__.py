"""Knowledge-infusion pretraining on Megatron-Core: exposure plan, training, probes and studies.

Importing this package is cheap: torch and Megatron-Core are imported by the modules that need them.
"""

__version__ = "0.1.0"
