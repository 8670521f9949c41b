package main

import (
	"fmt"
	"html"
	"strings"
)

// Measures of a plot, in pixels.
const (
	plotWidth  = 860
	labelWidth = 270
	barWidth   = 440 // of the longest bar
	barHeight  = 16
	rowHeight  = 22
	headHeight = 30
)

// plot draws one metric of some cases as bars, as an SVG. A bar is the median, and the line on it
// goes from minimum to maximum. Each case has its own scale.
func plot(m metric, cases []caseResult) string {
	var body strings.Builder
	y := 2 * headHeight
	for _, c := range cases {
		y = c.drawBars(&body, m, y)
	}
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" font-family="sans-serif" font-size="13">`+"\n", plotWidth, y, plotWidth, y)
	fmt.Fprintf(&b, `<rect width="100%%" height="100%%" fill="#fff"/>`+"\n")
	fmt.Fprintf(&b, `<text x="12" y="26" font-size="17" font-weight="bold">%s, %s: less is better</text>`+"\n", html.EscapeString(m.name), html.EscapeString(m.unit))
	b.WriteString(body.String())
	b.WriteString("</svg>\n")
	return b.String()
}

// drawBars draws a case from y on, and returns where it ends. A case without the metric is left
// out.
func (c caseResult) drawBars(b *strings.Builder, m metric, y int) int {
	longest := 0.0
	for _, row := range c.Rows {
		longest = max(longest, row.spread(m).Max)
	}
	if longest == 0 {
		return y
	}
	fmt.Fprintf(b, `<text x="12" y="%d" font-weight="bold">%s</text>`+"\n", y, html.EscapeString(c.title()))
	y += 8
	for i, row := range c.Rows {
		drawBar(b, row, m, y, barWidth/longest, i == 0)
		y += rowHeight
	}
	return y + headHeight
}

func drawBar(b *strings.Builder, row rowResult, m metric, y int, scale float64, own bool) {
	text := y + barHeight - 4
	fmt.Fprintf(b, `<text x="%d" y="%d" text-anchor="end">%s</text>`+"\n", labelWidth-8, text, html.EscapeString(row.Server))
	if row.Missing != "" {
		fmt.Fprintf(b, `<text x="%d" y="%d" fill="#888">not measured</text>`+"\n", labelWidth, text)
		return
	}
	s, color := row.spread(m), "#a9b4c2"
	if own {
		color = "#1f6fb2"
	}
	at := func(v float64) float64 { return labelWidth + v*scale }
	fmt.Fprintf(b, `<rect x="%d" y="%d" width="%.1f" height="%d" fill="%s"/>`+"\n", labelWidth, y, s.Median*scale, barHeight, color)
	middle := y + barHeight/2
	fmt.Fprintf(b, `<line x1="%.1f" x2="%.1f" y1="%d" y2="%d" stroke="#333" stroke-width="1.5"/>`+"\n", at(s.Min), at(s.Max), middle, middle)
	fmt.Fprintf(b, `<text x="%.1f" y="%d">%s</text>`+"\n", at(s.Max)+8, text, digits(s.Median))
}
