"""How tensors come from a device to main memory, and back, beside what the device computes."""

from collections.abc import Callable
from typing import Any

from steepest.extras import require

torch: Any = require("torch", extra="torch", purpose="steepest.torch")

__all__ = ["Link", "Streams", "link_to"]


class Link:
    """Main memory itself, where nothing is copied; the base of others."""

    def twin(self, p: Any) -> Any:
        """The parameter in main memory."""
        return p

    def fetch(self, grad: Any, p: Any) -> Callable[[], Any]:
        """Begins to copy a gradient of p; what waits for the copy, and returns it. It is used until
        the next one of p is fetched."""
        return lambda: grad

    def send(self, twin: Any, p: Any) -> None:
        """Begins to copy a twin into its parameter."""
        with torch.no_grad():
            p.copy_(twin)

    def pull(self, p: Any, twin: Any) -> None:
        """Copies a parameter, which may have got another dtype or shape, into its twin."""
        source = p.detach()
        with torch.no_grad():
            if twin.dtype == source.dtype and twin.shape == source.shape:
                twin.copy_(source)
            else:
                twin.data = source.to("cpu")

    def join(self) -> None:
        """Has what is computed from now on see all that was sent."""

    def synchronize(self) -> None:
        """Waits for all copies."""


class Streams(Link):
    """A device with streams: copies go beside its kernels, from and to pinned memory."""

    def __init__(self, device: Any) -> None:
        self._device = device
        self._down, self._up = torch.Stream(device), torch.Stream(device)
        self._buffers: dict[Any, Any] = {}

    def twin(self, p: Any) -> Any:
        return torch.nn.Parameter(self._pinned(p.detach()).copy_(p.detach()), p.requires_grad)

    def _pinned(self, x: Any) -> Any:
        return torch.empty_like(x, device="cpu", pin_memory=True)

    def fetch(self, grad: Any, p: Any) -> Callable[[], Any]:
        if grad.layout != torch.strided:
            raise TypeError(f"a gradient has layout {grad.layout}; expected a dense tensor")
        host = self._buffers.get(p)
        if host is None or host.dtype != grad.dtype or host.shape != grad.shape:
            host = self._buffers[p] = self._pinned(grad)
        self._down.wait_stream(torch.accelerator.current_stream(self._device))
        with self._down, torch.no_grad():
            host.copy_(grad, non_blocking=True)
        grad.record_stream(self._down)
        done = self._down.record_event()

        def ready() -> Any:
            done.synchronize()
            return host

        return ready

    def send(self, twin: Any, p: Any) -> None:
        # The device has got past all that read p: the gradient, for which a step waits, came later.
        with self._up, torch.no_grad():
            p.copy_(twin, non_blocking=True)

    def join(self) -> None:
        torch.accelerator.current_stream(self._device).wait_stream(self._up)

    def synchronize(self) -> None:
        self._down.synchronize()
        self._up.synchronize()


def link_to(device: Any) -> Link:
    """The link to a device. Raises TypeError for one without streams."""
    if device.type == "cpu":
        return Link()
    found = torch.accelerator.current_accelerator()
    if found is None or found.type != device.type:
        raise TypeError(f"parameters lie on device {device}, which has no streams to copy beside")
    return Streams(device)
