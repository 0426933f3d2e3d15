"""Loads kvsvr._quick out of the file of kvsvr._native: two modules in one, because the C core is to be there once."""

from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_loader

from kvsvr import _native

_loader = ExtensionFileLoader(__name__, _native.__file__)
_spec = spec_from_loader(__name__, _loader)
assert _spec is not None
_module = module_from_spec(_spec)
_loader.exec_module(_module)

Collecting, Door, Listing = _module.Collecting, _module.Door, _module.Listing
Pairs, Quick, Quickened = _module.Pairs, _module.Quick, _module.Quickened
pack = _module.pack
