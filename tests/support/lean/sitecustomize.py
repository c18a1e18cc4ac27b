"""Processes that tests start and that train no adapters run without peft.

Where peft is installed, transformers imports it, which is a third of a process's start.
"""

import sys

if not any("lora" in word or "peft" in word for word in sys.orig_argv):
    sys.modules["peft"] = None
