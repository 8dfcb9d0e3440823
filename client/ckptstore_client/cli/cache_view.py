"""What does the cache look like in one line of `status`, and in `cache status`? Pure: a CacheStatus in, something that rich prints out."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from ckptstore.wire import CacheStatus
from ckptstore_client.cli.terminal import counted, size, visible

_STATE_STYLE = {"ok": "green", "full": "bold yellow", "down": "bold red", "off": "dim"}


def render_cache(found: CacheStatus, *, all_pins: bool = False) -> RenderableType:
    """One line of `status`; with the pins, an answer of its own."""
    opens = found.hits + found.misses
    line = Text.assemble(
        ("CACHE", "bold"),
        "   ",
        (found.state if found.state == "ok" else found.state.upper(), _STATE_STYLE[found.state]),
        f", {size(found.held_bytes)} in {counted(found.files, 'files')}, {size(found.pinned_bytes)} pinned;"
        f" may hold {size(found.limit_bytes)};",
        f" {100 * found.hits // opens}% of {opens:,} opens found all here" if opens else " nothing was read yet",
        f", {size(found.saved_bytes)} saved" if found.saved_bytes else "",
    )
    parts: list[RenderableType] = [line]
    if found.last_error:
        parts.append(Text(f"cache: {visible(found.last_error)}"))
    if all_pins:
        parts.append(Text(f"folder  {visible(found.folder) or 'none: nothing is kept'}"))
        parts += [Text(f"pinned  {visible(pin)}") for pin in found.pins]
    return Group(*parts)
