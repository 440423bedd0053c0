"""`python -m fla_mesa.cpu` lists fla's functions and their stand-ins on CPU tensors."""

from fla_mesa import cpu
from fla_mesa.cpu.registry import pairs

cpu.enable()
if cpu.accelerator_available():
    print("This machine has an accelerator: the stand-ins are in place only after fla_mesa.cpu.enable().\n")
found = pairs()
width = max(len(theirs) for theirs, _ in found)
for theirs, ours in found:
    print(f"{theirs:<{width}}  {ours}")
