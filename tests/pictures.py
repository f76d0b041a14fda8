"""``python -m tests.pictures DEMO``: draws the picture of the README from the folder that ``geomprobe demo`` wrote."""

import json
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from geomprobe import Reading

__all__ = ["FINDING", "draw"]

FINDING = Path(__file__).resolve().parents[1] / ".github" / "images" / "demo.png"
"""The picture of the README."""


def draw(folder: Path) -> Figure:
    """Return the held-out loss above a map of sites × steps of the effective rank, whose lowest value is framed."""
    lines = [json.loads(line) for line in (folder / "geomprobe.jsonl").read_text("utf-8").splitlines()]
    held_out = {line["step"]: (line["loss"], Reading.from_dict(line)) for line in lines if line.get("mode") == "eval"}
    steps, (losses, readings) = list(held_out), zip(*held_out.values(), strict=True)
    sites = readings[0].sites
    ranks = np.array([[reading[f"effective_rank/{site}"] for reading in readings] for site in sites])

    figure = Figure(figsize=(8.4, 4.2), dpi=130, layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(1, 2.4))
    upper.plot(range(len(steps)), losses, color="#444444", marker="o", markersize=4)
    for place, loss in enumerate(losses):
        upper.annotate(f"{loss:.2f}", (place, loss), (0, 6), textcoords="offset points", ha="center", fontsize=8)
    upper.set_ylabel("held-out loss\n(nats)")
    upper.set_ylim(0, max(losses) * 1.35)
    upper.spines[["top", "right"]].set_visible(False)
    upper.tick_params(bottom=False)
    lower.imshow(ranks, cmap="YlGnBu", aspect="auto", origin="lower", vmin=0)
    for (site, place), rank in np.ndenumerate(ranks):
        dark = rank > 0.6 * ranks.max()
        lower.text(place, site, f"{rank:.1f}", ha="center", va="center", fontsize=9, color="white" if dark else "#222222")
    row, column = divmod(int(ranks.argmin()), len(steps))
    lower.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor="#d62728", linewidth=2.5, clip_on=False))
    lower.set_xticks(range(len(steps)), [f"{step}" if step else "untrained" for step in steps])
    lower.set_yticks(range(len(sites)), sites)
    lower.set_xlabel("training step")
    lower.set_ylabel("effective rank, of 128")
    return figure


def main() -> int:
    """Draw the picture."""
    if len(sys.argv) != 2:
        sys.exit("usage: python -m tests.pictures DEMO, the folder that geomprobe demo wrote")
    FINDING.parent.mkdir(exist_ok=True)
    draw(Path(sys.argv[1])).savefig(FINDING)
    print(f"{FINDING}: {FINDING.stat().st_size / 1000:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
