"""On the path of the processes that tests start: those that train no adapters do without peft, as users without the extra
`lora` do. Where it is installed, transformers imports it whether it is used or not, which is a third of a process's start."""

import sys

if not any("lora" in word or "peft" in word for word in sys.orig_argv):
    sys.modules["peft"] = None
