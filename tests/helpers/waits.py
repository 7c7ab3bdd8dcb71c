"""What would make the host wait for a device, counted on the CPU."""

from collections import Counter

from torch.utils._python_dispatch import TorchDispatchMode


class Waits(TorchDispatchMode):
    """Counts what would make the host wait for a device."""

    NAMES = ("_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "_to_copy")

    def __init__(self):
        super().__init__()
        self.seen = Counter()
        self.all = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        self.all[name] += 1
        if name in self.NAMES:
            self.seen[name] += 1
        return func(*args, **(kwargs or {}))
