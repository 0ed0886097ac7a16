"""Machine specs: ``family:model?option=value&option=value``.

>>> name, options = parse("sim:pc-isa?bounce=17")
>>> name, options.number("bounce", 128)
('sim:pc-isa', 17)
"""

from __future__ import annotations

from urllib.parse import parse_qsl

from busdma.errors import ConfigurationError


class Options:
    """The options of one spec. `finish` refuses what nobody asked for."""

    def __init__(self, spec: str, values: dict[str, str]) -> None:
        self._spec = spec
        self._values = dict(values)
        self._asked: dict[str, str] = {}
        self.check = False  #: the machine is to be opened under the checker

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

    def finish(self) -> None:
        """ConfigurationError for an option that the machine does not have."""
        if self._values:
            raise ConfigurationError(
                f"{self._spec}: no option {', '.join(sorted(self._values))}; "
                f"there are: {', '.join(sorted(self._asked))}"
            )


def parse(spec: str, extra: dict[str, object] | None = None) -> tuple[str, Options]:
    """The machine's name and its options; `extra` ones come from keyword arguments and win."""
    name, mark, query = spec.partition("?")
    try:
        values = dict(parse_qsl(query, keep_blank_values=True, strict_parsing=True)) if mark else {}
    except ValueError:
        raise ConfigurationError(f"{spec}: options are written ?name=value&name=value") from None
    values |= {key: str(value) for key, value in (extra or {}).items()}
    return name, Options(spec, values)


def with_option(spec: str, name: str, value: object) -> str:
    """`spec` with that option, whatever it said of it before.

    >>> with_option("sim:pc-isa?seed=3", "bounce", 17)
    'sim:pc-isa?seed=3&bounce=17'
    """
    machine, _, options = spec.partition("?")
    kept = [option for option in options.split("&") if option and option.partition("=")[0] != name]
    return f"{machine}?{'&'.join([*kept, f'{name}={value}'])}"
