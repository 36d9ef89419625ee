"""Loading the codec that a command line names: s2s-data itself has none."""

from collections.abc import Sequence
from importlib import import_module
from inspect import signature

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from s2s_data.codes import AudioCodec
from s2s_data.errors import DataError

_ASKED = ("sample_rate", "frame_rate", "fingerprint", "encode")


def make_codec(factory: str, args: Sequence[str] = ()) -> AudioCodec:
    """Call ``factory``, "module:function", with ``args``, "key=value" each, and return the codec that it makes.

    Values are read as YAML has them: ``k=3`` is a number. Raises :class:`DataError` if there is no such function,
    or what it makes isn't an :class:`~s2s_data.codes.AudioCodec`.
    """
    module_name, _, name = factory.partition(":")
    if not module_name or not name:
        raise DataError(f"--codec is {factory!r}, but must be module:function, as in s2s_model.codecs:load_codec")
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        raise DataError(f"--codec {factory}: {error}: install it, or put its folder on PYTHONPATH") from error
    make = getattr(module, name, None)
    if not callable(make):
        raise DataError(f"--codec {factory}: {module_name} has no function {name}")
    keywords = _keywords(args)
    try:
        signature(make).bind(**keywords)
    except TypeError as error:
        raise DataError(f"--codec {factory}: {error}: it takes {signature(make)}; give --codec-args") from error
    try:
        codec = make(**keywords)
    except ValueError as error:
        raise DataError(f"--codec {factory}: {error}") from error
    if missing := [attribute for attribute in _ASKED if not hasattr(codec, attribute)]:
        raise DataError(
            f"--codec {factory}: it returned a {type(codec).__name__} without {', '.join(missing)}: it must return an "
            "s2s_data.AudioCodec"
        )
    made: AudioCodec = codec
    return made


def _keywords(args: Sequence[str]) -> dict[str, object]:
    for arg in args:
        if not arg.partition("=")[0].isidentifier() or "=" not in arg:
            raise DataError(f"--codec-args: {arg!r} must be key=value")
    try:
        keywords = OmegaConf.to_container(OmegaConf.from_dotlist(list(args)), resolve=True)
    except OmegaConfBaseException as error:
        raise DataError(f"--codec-args: {error}") from error
    assert isinstance(keywords, dict)
    return {str(key): value for key, value in keywords.items()}
