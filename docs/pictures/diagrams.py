"""The diagrams of the documentation, as SVG: boxes and arrows, in colours that can be read on white and on black.

    python docs/pictures/diagrams.py    writes batch.svg and fence.svg beside itself

Without a library: a diagram is text, and the same text each time, so that a change of it is seen as one.
"""

import sys
from html import escape
from pathlib import Path

INK = "#5c6f82"
BLUE, GREEN, AMBER, GREY = "#1e6fd0", "#2e8b57", "#c77700", "#7d8b99"


class Diagram:
    """A drawing of so many pixels by so many."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self.head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
            f'height="{height}" role="img" font-family="sans-serif" font-size="13">'
        )
        self.parts = [f"<title>{escape(title)}</title>"]
        for name, colour in (("ink", INK), ("blue", BLUE), ("amber", AMBER), ("green", GREEN)):
            self.parts.append(
                f'<marker id="{name}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
                f'orient="auto-start-reverse"><path d="M0 0L8 4L0 8z" fill="{colour}"/></marker>'
            )

    def box(self, x: int, y: int, width: int, height: int, lines: str, colour: str = INK) -> None:
        """A box around lines of text, the first of which is its name."""
        self.parts.append(
            f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="6" fill="{colour}" fill-opacity="0.13" '
            f'stroke="{colour}" stroke-width="1.5"/>'
        )
        rows = lines.split("\n")
        first = y + height / 2 - 8 * (len(rows) - 1) + 4.5
        for number, row in enumerate(rows):
            self.text(x + width / 2, first + 16 * number, row, colour, bold=not number, anchor="middle")

    def text(
        self, x: float, y: float, text: str, colour: str = INK, *, bold: bool = False, anchor: str = "start"
    ) -> None:
        """One line of it."""
        style = ' font-weight="600"' if bold else ' font-size="11.5"'
        self.parts.append(
            f'<text x="{x:g}" y="{y:g}" fill="{colour}" text-anchor="{anchor}"{style}>{escape(text)}</text>'
        )

    def arrow(self, path: str, name: str = "ink", *, dashed: bool = False) -> None:
        """Along a path of SVG."""
        colour = {"ink": INK, "blue": BLUE, "amber": AMBER, "green": GREEN}[name]
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        self.parts.append(
            f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.6"{dash} marker-end="url(#{name})"/>'
        )

    def svg(self) -> str:
        """The file's text."""
        return "\n".join([self.head, *self.parts, "</svg>"]) + "\n"


def batch() -> str:
    """How a batch travels."""
    it = Diagram(760, 300, "How a batch travels: plan, slot, workers, placement, next, and back")
    it.box(10, 20, 130, 64, "plan\nseed, epoch, step\n→ items, seeds", BLUE)
    it.box(190, 20, 130, 64, "slot\nrows of shared\nmemory", GREEN)
    it.box(370, 20, 150, 64, "placed\njax.Arrays over\nthe same memory", GREEN)
    it.box(570, 20, 180, 64, "your loop\nfor batch in loader:\n    step(batch.arrays)", AMBER)
    it.arrow("M140 52H188", "blue")
    it.arrow("M320 52H368", "green")
    it.arrow("M520 52H568", "green")
    for number in range(3):
        it.box(150 + 76 * number, 160, 66, 44, f"worker\n{number}", GREY)
        it.arrow(f"M{183 + 76 * number} 160C{183 + 76 * number} 120 {225 + 30 * number} 130 {225 + 30 * number} 86")
    it.text(425, 170, "each calls your loader function, which fills")
    it.text(425, 186, "its rows in place: no pickle, no collate, no copy")
    it.arrow("M75 84V182H148", "blue", dashed=True)
    it.text(14, 226, "which items, as numbers", BLUE)
    it.arrow("M660 84V262H255V208", "amber", dashed=True)
    it.text(300, 254, "del batch, and nothing reads it any more: the slot is free for a later batch", AMBER)
    return it.svg()


def fence() -> str:
    """When memory on a GPU may be written again."""
    it = Diagram(760, 320, "The ring of slots and the fence: when memory on a GPU may be written again")
    for y, name in ((52, "host"), (122, "copy stream"), (192, "JAX's stream")):
        it.text(8, y + 4, name, INK, bold=True)
        it.arrow(f"M110 {y}H750", dashed=True)
    it.box(122, 32, 90, 40, "batch 0\nin slot 0", GREEN)
    it.box(300, 32, 110, 40, "del batch\nretired", AMBER)
    it.box(440, 32, 120, 40, "batch 3 wants\nslot 0", BLUE)
    it.box(150, 102, 90, 40, "copy 0\nto slot 0", GREEN)
    it.box(600, 102, 110, 40, "copy 3\nto slot 0", BLUE)
    it.box(250, 172, 270, 40, "step 0 reads slot 0\n(launched, and not finished)", GREEN)
    it.box(530, 172, 60, 40, "fence", AMBER)
    it.arrow("M240 122C250 122 250 150 262 170", "green")
    it.arrow("M400 72C430 110 545 120 557 170", "amber")
    it.arrow("M590 192C620 192 640 170 645 144", "amber")
    it.arrow("M560 52C600 52 630 70 645 100", "blue")
    lines = (
        "JAX lets go of a batch when the step that reads it was launched, long before it is done. So a slot that was",
        "dropped is retired, a tiny computation behind the step is its fence, and the copy that writes the slot again",
        "waits for that on the device. The host waits for nothing.",
    )
    for number, line in enumerate(lines):
        it.text(8, 258 + 18 * number, line)
    return it.svg()


def main(folder: Path) -> None:
    """Writes them."""
    (folder / "batch.svg").write_text(batch())
    (folder / "fence.svg").write_text(fence())


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
