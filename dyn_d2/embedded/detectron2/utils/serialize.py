"""Pickling of closures for worker processes."""

from typing import Any

import cloudpickle


class PicklableWrapper:
    """Behaves like ``obj`` but travels between processes by cloudpickle, which also takes lambdas and closures."""

    def __init__(self, obj: Any):
        self._obj = obj._obj if isinstance(obj, PicklableWrapper) else obj

    def __reduce__(self):
        # Unpickling gives back the bare object: the wrapper is only needed on the way.
        return cloudpickle.loads, (cloudpickle.dumps(self._obj),)

    def __call__(self, *args, **kwargs):
        return self._obj(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name == "_obj":  # asked for before __init__ ran, as copy and pickle do
            raise AttributeError(name)
        return getattr(self._obj, name)
