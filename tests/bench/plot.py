"""The rows of tests/bench/run as a picture: each figure's ratio to its baseline on a logarithmic scale, its target as a mark."""
import html
import math

BAR, LEFT, WIDTH, TOP = 18, 430, 420, 46


def svg(title, rows):
    low = min(0.1, *(0.7 * r["ratio"] for r in rows))
    high = max(10.0, *(r["ratio"] for r in rows))
    x = lambda ratio: LEFT + WIDTH * (math.log10(ratio) - math.log10(low)) / (math.log10(high) - math.log10(low))
    height = TOP + BAR * len(rows) + 30
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{LEFT + WIDTH + 70}" height="{height}" font-family="sans-serif" font-size="11">',
           '<rect width="100%" height="100%" fill="white"/>',
           f'<text x="10" y="18" font-size="14">{html.escape(title)}</text>',
           '<text x="10" y="34" fill="#555">ratio to the baseline named; green: target held, red: not, grey: no target; the mark is the target</text>']
    for decade in range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1):
        at = x(10.0 ** decade)
        out.append(f'<line x1="{at:.1f}" y1="{TOP}" x2="{at:.1f}" y2="{height - 24}" stroke="{"#888" if decade == 0 else "#ddd"}"/>')
        out.append(f'<text x="{at:.1f}" y="{height - 10}" text-anchor="middle" fill="#555">{10.0 ** decade:g}</text>')
    for i, r in enumerate(rows):
        y = TOP + BAR * i
        color = {"yes": "#2a9d55", "NO": "#cc3333"}.get(r["held"], "#999")
        begin, end = sorted((x(1.0), x(r["ratio"])))
        label = r["figure"] if len(r["figure"]) < 68 else r["figure"][:66] + "..."
        out.append(f'<text x="{LEFT - 8}" y="{y + 12}" text-anchor="end">{html.escape(label)}<title>{html.escape(r["figure"] + " against " + r["baseline"])}</title></text>')
        out.append(f'<rect x="{begin:.1f}" y="{y + 3}" width="{max(1.0, end - begin):.1f}" height="{BAR - 6}" fill="{color}"/>')
        out.append(f'<text x="{x(r["ratio"]) + (4 if r["ratio"] >= 1 else -4):.1f}" y="{y + 12}" text-anchor="{"start" if r["ratio"] >= 1 else "end"}">{r["ratio"]:.2f}</text>')
        if r["target"]:
            out.append(f'<line x1="{x(r["target"]):.1f}" y1="{y + 1}" x2="{x(r["target"]):.1f}" y2="{y + BAR - 1}" stroke="black" stroke-width="2"/>')
    return "\n".join(out + ["</svg>", ""])
