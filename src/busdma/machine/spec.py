"""Machine specs: ``family:model?option=value&option=value``.

>>> name, options = parse("sim:pc-isa?bounce=17")
>>> name, options.number("bounce", 128)
('sim:pc-isa', 17)
"""

from __future__ import annotations

from urllib.parse import unquote_plus

from busdma.errors import ConfigurationError


class Asked(Exception):
    """A machine has asked for all its options, and was to do no more. ``defaults``: what holds if they are left out."""

    def __init__(self, defaults: dict[str, str]) -> None:
        super().__init__(defaults)
        self.defaults = defaults


class Options:
    """The options of one spec. `finish` refuses what nobody asked for."""

    def __init__(self, spec: str, values: dict[str, str]) -> None:
        self._spec = spec
        self._values = dict(values)
        self._asked: dict[str, str] = {}
        self.check = False  #: the machine is to be opened under the checker
        self.only_ask = False  #: `finish` raises Asked, so that the machine is not opened

    def text(self, name: str, default: str) -> str:
        """The option as it stands."""
        found = self._asked[name] = self._values.pop(name, self._asked.get(name, default))
        return found

    def number(self, name: str, default: int, *, least: int = 0) -> int:
        """The option as an integer (0x and 0b too), at least `least`. ConfigurationError otherwise."""
        text = self.text(name, str(default))
        try:
            value = int(text, 0)
        except ValueError:
            raise ConfigurationError(
                f"{self._spec}: {name}={text} is not a number: give one such as 17 or 0x11"
            ) from None
        if value < least:
            raise ConfigurationError(f"{self._spec}: {name}={value} is too small: give {least} or more")
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        """The option as 0 or 1. ConfigurationError otherwise."""
        text = self.text(name, str(int(default)))
        if text not in ("0", "1"):
            raise ConfigurationError(f"{self._spec}: {name}={text}: give 0 or 1")
        return text == "1"

    def finish(self) -> None:
        """ConfigurationError for an option that the machine does not have."""
        if self.only_ask:
            raise Asked(dict(self._asked))
        if self._values:
            raise ConfigurationError(
                f"{self._spec}: no option {', '.join(sorted(self._values))}; "
                f"there are: {', '.join(sorted(self._asked))}"
            )


def parse(spec: str, extra: dict[str, object] | None = None) -> tuple[str, Options]:
    """The machine's name and its options; `extra` ones come from keyword arguments and win.

    ConfigurationError for what is no spec, and for an option that is given twice.
    """
    if not isinstance(spec, str):
        raise ConfigurationError(
            f"{spec!r} is no spec of a machine: give a string such as 'sim:pc-isa' or 'sim:pc-isa?bounce=17'"
        )
    values = {unquote_plus(name): unquote_plus(value) for name, value in written(spec)}
    values |= {key: str(value) for key, value in (extra or {}).items()}
    return spec.partition("?")[0], Options(spec, values)


def written(spec: str) -> list[tuple[str, str]]:
    """The options of `spec` as they stand in it, quoted characters included. ConfigurationError.

    >>> written("sim:pc-isa?bounce=17&seed=3")
    [('bounce', '17'), ('seed', '3')]
    """
    _, mark, query = spec.partition("?")
    found: dict[str, str] = {}
    for option in query.split("&") if mark else ():
        name, equals, value = option.partition("=")
        if not (name and equals):
            raise ConfigurationError(f"{spec}: options are written ?name=value&name=value")
        if name in found:
            raise ConfigurationError(f"{spec}: option {name} is given twice; give it once")
        found[name] = value
    return list(found.items())


def with_option(spec: str, name: str, value: object) -> str:
    """`spec` with that option, whatever it said of it before.

    >>> with_option("sim:pc-isa?seed=3", "bounce", 17)
    'sim:pc-isa?seed=3&bounce=17'
    """
    machine, _, options = spec.partition("?")
    kept = [option for option in options.split("&") if option and option.partition("=")[0] != name]
    return f"{machine}?{'&'.join([*kept, f'{name}={value}'])}"
