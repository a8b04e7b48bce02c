"""Between the shell and the commands: exit statuses, the one error line, JSON or tables."""

from __future__ import annotations

import json
import signal
import sys
import threading
import traceback
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

import typer

from alignez_bake.errors import AlignezBakeError, BadInputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import FrameType

    from rich.table import Table

OUR_FAULT: Final = 3
INTERRUPTED: Final = 130
_INTERRUPTION: Final = "interrupted; nothing half-written is left, and the same command goes on"


class JsonResult(Protocol):
    """What every command returns."""

    def to_json(self) -> dict[str, Any]:
        """The result as JSON values."""
        ...


def show(result: JsonResult, *, as_json: bool, tables: Callable[[], Sequence[Table | str]]) -> None:
    """Print a result: one JSON document, or tables."""
    if as_json:
        sys.stdout.write(json.dumps(result.to_json(), indent=2, ensure_ascii=False, allow_nan=False) + "\n")
        return
    from alignez_bake.report.tables import print_tables  # noqa: PLC0415 - not needed for JSON

    print_tables(*tables())


def resolved_device(name: str) -> str:
    """The device that `auto` stands for on this machine; any other name as it is."""
    if name != "auto":
        return name
    import torch  # noqa: PLC0415 - seconds to import, and many commands need none of it

    return "cuda" if torch.cuda.is_available() else "cpu"


def number(text: str | None, option: str) -> float | None:
    """The value of an option that takes a number.

    Raises:
        BadInputError: no finite number.
    """
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        raise BadInputError(f"{option} {text!r} is no number") from None
    if value != value or value in (float("inf"), float("-inf")):  # noqa: PLR0124 - NaN is unequal to itself
        raise BadInputError(f"{option} {text} must be finite")
    return value


def number_or_auto(text: str | None, option: str) -> float | Literal["auto"] | None:
    """The value of an option that takes a number or `auto`; errors as `number`."""
    return "auto" if text == "auto" else number(text, option)


def run(app: typer.Typer, arguments: Sequence[str]) -> int:
    """Run the command line and return its exit status; the last line of standard error is the error.

    0 done and verified; 1 a check failed; 2 bad usage or input; 3 our own fault; 130 interrupted.
    """
    with _noted_interrupts() as interrupts:
        return _status(app, arguments, interrupts)


@contextmanager
def _noted_interrupts() -> Iterator[list[int]]:
    """Note each Ctrl-C besides raising KeyboardInterrupt: a library may turn that into an error of its own.

    (torch does, where it comes in the middle of a transform.) Only the main thread can handle signals.
    """
    noted: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        noted.append(number)
        signal.default_int_handler(number, frame)

    if threading.current_thread() is not threading.main_thread():
        yield noted
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, before)


def _status(app: typer.Typer, arguments: Sequence[str], interrupts: list[int]) -> int:
    try:
        status = app(args=list(arguments), prog_name="alignez-bake", standalone_mode=False)
    except AlignezBakeError as error:
        return _fail(str(error), error.exit_status)
    except typer.TyperException as error:
        return _fail(_usage_message(error), BadInputError.exit_status)
    except (KeyboardInterrupt, typer.Abort):
        status = INTERRUPTED
    except Exception as error:  # noqa: BLE001 - the outermost frame: whatever comes here is our own fault
        if not interrupts:
            traceback.print_exc()
            return _fail(f"internal error, please report it: {type(error).__name__}: {error}", OUR_FAULT)
        status = INTERRUPTED
    if status == INTERRUPTED:  # also what typer makes of Ctrl-C within a command
        return _fail(_INTERRUPTION, INTERRUPTED)
    return status if isinstance(status, int) else 0


def _usage_message(error: typer.TyperException) -> str:
    message = error.format_message() if hasattr(error, "format_message") else str(error)
    return f"{message} (see alignez-bake --help)"


def _fail(message: str, status: int) -> int:
    line = " ".join(message.split())
    sys.stderr.write(f"error: {line}\n")
    return status
